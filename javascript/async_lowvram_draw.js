/* Async lowvram: where the lines and bars of its two pictures go. Pure functions, in pixels: `wide` is the picture's. */

(function(root) {
    "use strict";

    const CURVE = {height: 200, left: 40, right: 12, top: 20, bottom: 36};
    const BLOCKS = {height: 120, top: 4, bottom: 20};
    const LETTER = 6.5; // pixels, of the names under the bars
    const RESIDENT = 0, STREAMED = 1;

    /** Up to `count` round numbers from 0 on, the last of them at most `top`. */
    function ticks(top, count) {
        if (!(top > 0)) {
            return [0];
        }
        const rough = top / (count - 1);
        const power = Math.pow(10, Math.floor(Math.log10(rough)));
        const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
        const found = [];
        for (let value = 0; value <= top * 1.001 && found.length < count; value += step) {
            found.push(Number(value.toPrecision(6)));
        }
        return found;
    }

    /** Powers of two from `least` to `most`, up to `count`: else every second, or third. */
    function doublings(least, most, count) {
        const first = Math.ceil(Math.log2(least) - 1e-9), last = Math.floor(Math.log2(most) + 1e-9);
        const all = Array.from({length: Math.max(0, last - first + 1)}, (_, index) => Math.pow(2, first + index));
        const every = Math.max(1, Math.ceil(all.length / count));
        return all.filter((_, index) => (all.length - 1 - index) % every === 0);
    }

    /** Scales of the curve: {x(mb), y(its), mb(x)}. `points` are [MB, ms, it/s]; `extra` it/s must fit too. Each doubling
        of the size is as wide: small sizes are where the choice is. */
    function curveScale(points, extra, wide) {
        const least = points.length ? points[0][0] : 1;
        const most = Math.max(least * 1.01, points.length ? points[points.length - 1][0] : 1);
        const maxIts = 1.15 * Math.max(extra || 0, ...points.map((point) => point[2]), 1e-9);
        const inner = Math.max(1, wide - CURVE.left - CURVE.right);
        const high = CURVE.height - CURVE.top - CURVE.bottom;
        const within = (part) => Math.max(0, Math.min(1, part));
        return {
            least, most, maxIts,
            x: (mb) => round(CURVE.left + inner * within(Math.log(mb / least) / Math.log(most / least))),
            y: (its) => round(CURVE.top + high * (1 - its / maxIts)),
            mb: (x) => least * Math.pow(most / least, within((x - CURVE.left) / inner)),
            bottom: CURVE.top + high,
            left: CURVE.left,
            right: CURVE.left + inner,
        };
    }

    /** The curve's it/s at `mb`: between two points, on the line. */
    function speedAt(points, mb) {
        const after = points.findIndex((point) => point[0] >= mb);
        if (after <= 0) {
            return points[after < 0 ? points.length - 1 : 0][2];
        }
        const [low, high] = [points[after - 1], points[after]];
        return low[2] + (high[2] - low[2]) * (mb - low[0]) / (high[0] - low[0]);
    }

    function linePath(points, scale) {
        return points.map((p, i) => `${i ? "L" : "M"}${scale.x(p[0])} ${scale.y(p[2])}`).join("");
    }

    function areaPath(points, scale) {
        if (!points.length) {
            return "";
        }
        const first = scale.x(points[0][0]), last = scale.x(points[points.length - 1][0]);
        return `${linePath(points, scale)}L${last} ${scale.bottom}L${first} ${scale.bottom}Z`;
    }

    /** Bars of the blocks: one path for each kind, where each block is, and labels for groups of blocks. */
    function bars(blocks, width) {
        const sizes = blocks.map((block) => block[2].reduce((sum, span) => sum + span[1], 0));
        const heaviest = Math.max(1, ...sizes);
        const wide = width / Math.max(1, blocks.length);
        const high = BLOCKS.height - BLOCKS.top - BLOCKS.bottom;
        const gap = Math.min(2, wide * 0.2);
        const paths = ["", ""];
        blocks.forEach((block, index) => {
            const left = index * wide + gap / 2;
            let bottom = BLOCKS.top + high;
            for (const kind of [RESIDENT, STREAMED]) {
                const bytes = block[2].reduce((sum, span) => sum + (span[0] === kind ? span[1] : 0), 0);
                const rise = high * bytes / heaviest;
                if (bytes > 0) {
                    paths[kind] += `M${round(left)} ${round(bottom)}h${round(wide - gap)}v${round(-rise)}h${round(gap - wide)}Z`;
                }
                bottom -= rise;
            }
        });
        return {resident: paths[RESIDENT], streamed: paths[STREAMED], groups: groups(blocks, wide)};
    }

    /** Names of runs of blocks that are wide enough for their name. All of a guest's are one run: "ControlNet/…". */
    function groups(blocks, wide) {
        const runs = [];
        blocks.forEach((block, index) => {
            const name = block[0].split(/[./]/)[0].replace(/_/g, " ");
            const last = runs[runs.length - 1];
            if (last && last.name === name) {
                last.stop = index + 1;
            } else {
                runs.push({name, first: index, stop: index + 1});
            }
        });
        return runs
            .map((run) => ({name: run.name, x: round(wide * (run.first + run.stop) / 2), wide: wide * (run.stop - run.first)}))
            .filter((run) => run.wide >= LETTER * run.name.length);
    }

    /** The block under `x` of `width`, as an index. */
    function blockAt(blocks, x, width) {
        return Math.max(0, Math.min(blocks.length - 1, Math.floor(x / width * blocks.length)));
    }

    function round(value) {
        return Math.round(value * 100) / 100;
    }

    root.asyncLowvram = Object.assign(root.asyncLowvram || {}, {
        ticks, doublings, curveScale, speedAt, linePath, areaPath, bars, blockAt, CURVE, BLOCKS,
    });
})(globalThis);
