/* Async lowvram: where the lines and bars of its two pictures go. Pure functions, in the units of the SVG's viewBox. */

(function(root) {
    "use strict";

    const CURVE = {width: 400, height: 160, left: 34, right: 8, top: 16, bottom: 30};
    const BLOCKS = {width: 400, height: 110, left: 2, right: 2, top: 4, bottom: 18};
    const STEP_MB = 16;
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

    /** Scales of the curve: {x(mb), y(its), mb(x), points}. `points` are [MB, ms, it/s]; `extra` it/s must fit too. */
    function curveScale(points, extra) {
        const maxMb = points.length ? points[points.length - 1][0] : 1;
        const maxIts = 1.15 * Math.max(extra || 0, ...points.map((point) => point[2]), 1e-9);
        const wide = CURVE.width - CURVE.left - CURVE.right;
        const high = CURVE.height - CURVE.top - CURVE.bottom;
        return {
            maxMb, maxIts,
            x: (mb) => round(CURVE.left + wide * Math.min(1, mb / maxMb)),
            y: (its) => round(CURVE.top + high * (1 - its / maxIts)),
            mb: (x) => Math.max(0, Math.min(1, (x - CURVE.left) / wide)) * maxMb,
            bottom: CURVE.top + high,
            left: CURVE.left,
            right: CURVE.width - CURVE.right,
        };
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

    /** The index of the point nearest to `mb`. */
    function nearest(points, mb) {
        let best = 0;
        points.forEach((point, index) => {
            if (Math.abs(point[0] - mb) < Math.abs(points[best][0] - mb)) {
                best = index;
            }
        });
        return best;
    }

    /** A size that the slider can have: a step, at least one, not below `mb`. */
    function sliderSize(mb) {
        return Math.max(1, Math.ceil(mb / STEP_MB - 0.001)) * STEP_MB;
    }

    /** Bars of the blocks: one path for each kind, where each block is, and labels for groups of blocks. */
    function bars(blocks) {
        const sizes = blocks.map((block) => block[2].reduce((sum, span) => sum + span[1], 0));
        const heaviest = Math.max(1, ...sizes);
        const wide = (BLOCKS.width - BLOCKS.left - BLOCKS.right) / Math.max(1, blocks.length);
        const high = BLOCKS.height - BLOCKS.top - BLOCKS.bottom;
        const gap = Math.min(2, wide * 0.2);
        const paths = ["", ""];
        blocks.forEach((block, index) => {
            const left = BLOCKS.left + index * wide + gap / 2;
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

    /** Names of runs of blocks that are wide enough for their name. */
    function groups(blocks, wide) {
        const runs = [];
        blocks.forEach((block, index) => {
            const name = block[0].split(".")[0].replace(/_/g, " ");
            const last = runs[runs.length - 1];
            if (last && last.name === name) {
                last.stop = index + 1;
            } else {
                runs.push({name, first: index, stop: index + 1});
            }
        });
        return runs
            .map((run) => ({name: run.name, x: round(BLOCKS.left + wide * (run.first + run.stop) / 2), wide: wide * (run.stop - run.first)}))
            .filter((run) => run.wide >= 4.6 * run.name.length);
    }

    /** The block under `x`, as an index. */
    function blockAt(blocks, x) {
        const wide = (BLOCKS.width - BLOCKS.left - BLOCKS.right) / Math.max(1, blocks.length);
        return Math.max(0, Math.min(blocks.length - 1, Math.floor((x - BLOCKS.left) / wide)));
    }

    function round(value) {
        return Math.round(value * 100) / 100;
    }

    root.asyncLowvram = Object.assign(root.asyncLowvram || {}, {
        ticks, curveScale, linePath, areaPath, nearest, sliderSize, bars, blockAt, CURVE, BLOCKS,
    });
})(globalThis);
