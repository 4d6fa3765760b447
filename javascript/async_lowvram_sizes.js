/* Async lowvram: buffer sizes in MB, those that the slider stops at, and what a typed one means. Pure functions. */

(function(root) {
    "use strict";

    const LEAST_MB = 16, MOST_MB = 65536; // as the API takes them
    const GIB = 1024 * 1024 * 1024;

    /** Where the slider stops: the sizes of the curve; before there is one, 32 MB to what the card has, or 8192 MB. */
    function sizes(curve, cardBytes) {
        const measured = curve.map((point) => point[0]).filter((mb) => mb >= LEAST_MB);
        if (measured.length) {
            return measured;
        }
        const powers = [8, 16, 32, 64, 128, 256, 512, 1024, 2048];
        const most = Math.min(8192, cardBytes ? cardBytes * 1024 / GIB : Infinity);
        return powers.flatMap((n) => [4 * n, 5 * n, 6 * n]).filter((mb) => mb <= most);
    }

    /** The place of `mb` on the slider: 0 is auto, then `stops`; between two of them the nearer one. */
    function placeOf(mb, stops) {
        return mb > 0 ? 1 + nearest(stops.map((stop) => [stop]), mb) : 0;
    }

    /** The size that a typed number stands for: whole MB that can be used, or 0 for auto. */
    function usable(typed, curve) {
        const mb = Math.round(Number(typed));
        const least = curve.length ? curve[0][0] : 0;
        return mb > 0 ? Math.min(MOST_MB, Math.max(mb, LEAST_MB, least)) : 0;
    }

    /** Buttons [MB, it/s]: half of the knee, the knee, everything; before there is a curve, fractions of the card. */
    function presets(curve, kneeMb, cardBytes) {
        const points = curve.filter((point) => point[0] >= LEAST_MB);
        const knee = points.find((point) => point[0] >= kneeMb);
        if (knee) {
            const half = points[nearest(points, knee[0] / 2)];
            const found = [half, knee, points[points.length - 1]];
            return found.filter((point, index) => found.indexOf(point) === index).map((point) => [point[0], point[2]]);
        }
        const unit = cardBytes ? Math.max(1, Math.round(cardBytes / GIB / 2)) * 64 : 0;
        return unit ? [unit, 2 * unit, 4 * unit, 8 * unit].filter((mb) => mb <= 8192).map((mb) => [mb, 0]) : [];
    }

    /** The index of the point [MB, …] nearest to `mb`. */
    function nearest(points, mb) {
        let best = 0;
        points.forEach((point, index) => {
            if (Math.abs(point[0] - mb) < Math.abs(points[best][0] - mb)) {
                best = index;
            }
        });
        return best;
    }

    root.asyncLowvram = Object.assign(root.asyncLowvram || {}, {sizes, placeOf, usable, presets, nearest});
})(globalThis);
