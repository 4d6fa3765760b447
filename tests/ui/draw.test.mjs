/* Where lines and bars go. */

import assert from "node:assert/strict";
import {test} from "node:test";
import {readFileSync} from "node:fs";

(0, eval)(readFileSync(new URL("../../javascript/async_lowvram_draw.js", import.meta.url), "utf8"));
const lib = globalThis.asyncLowvram;
const POINTS = [[64, 230, 4.35], [256, 200, 5], [1639, 172, 5.81]];

test("ticks are round and few", () => {
    assert.deepEqual(lib.ticks(1639, 6), [0, 500, 1000, 1500]);
    assert.deepEqual(lib.ticks(6.7, 4), [0, 2.5, 5]);
    assert.deepEqual(lib.ticks(0.1, 6), [0, 0.02, 0.04, 0.06, 0.08, 0.1]);
    assert.deepEqual(lib.ticks(0, 6), [0]);
    for (const top of [0.003, 1, 7, 33, 480, 8192, 1e6]) {
        assert.ok(lib.ticks(top, 6).length <= 6 && lib.ticks(top, 6).at(-1) <= top * 1.001);
    }
});

test("a scale leads there and back", () => {
    const scale = lib.curveScale(POINTS, 0);
    for (const mb of [0, 64, 820, 1639]) {
        assert.ok(Math.abs(scale.mb(scale.x(mb)) - mb) < 0.1);
    }
    assert.equal(scale.y(0), scale.bottom);
    assert.ok(scale.y(5.81) < scale.y(4.35));
    assert.equal(scale.mb(-50), 0);
    assert.equal(scale.x(99999), scale.right);
    assert.ok(lib.curveScale(POINTS, 9).y(9) > 0, "what was measured has room");
});

test("paths begin and end with the curve", () => {
    const scale = lib.curveScale(POINTS, 0);
    assert.match(lib.linePath(POINTS, scale), /^M[\d.]+ [\d.]+(L[\d.]+ [\d.]+){2}$/);
    assert.match(lib.areaPath(POINTS, scale), /Z$/);
    assert.equal(lib.areaPath([], lib.curveScale([], 0)), "");
});

test("nearest and slider sizes", () => {
    assert.equal(lib.nearest(POINTS, 0), 0);
    assert.equal(lib.nearest(POINTS, 200), 1);
    assert.equal(lib.nearest(POINTS, 5000), 2);
    assert.deepEqual([0.2, 16, 17, 1639.4].map(lib.sliderSize), [16, 16, 32, 1648]);
});

test("bars stack what stays on what streams", () => {
    const blocks = [
        ["time_embed", 0.1, [[0, 100]]], ["input_blocks.0", 1, [[1, 300], [0, 100]]], ["input_blocks.1", 1, [[1, 50]]],
        ...[2, 3, 4, 5, 6, 7, 8, 9].map((n) => [`input_blocks.${n}`, 1, [[1, 10]]]),
    ];
    const found = lib.bars(blocks);
    assert.equal(found.resident.match(/M/g).length, 2);
    assert.equal(found.streamed.match(/M/g).length, 10);
    assert.deepEqual(found.groups.map((group) => group.name), ["input blocks"]);
    assert.equal(lib.blockAt(blocks, 0), 0);
    assert.equal(lib.blockAt(blocks, 399), blocks.length - 1);
    assert.deepEqual(lib.bars([]).groups, []);
});
