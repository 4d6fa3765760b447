/* Where lines and bars go. */

import assert from "node:assert/strict";
import {test} from "node:test";
import {readFileSync} from "node:fs";

for (const name of ["sizes", "draw"]) {
    (0, eval)(readFileSync(new URL(`../../javascript/async_lowvram_${name}.js`, import.meta.url), "utf8"));
}
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

test("powers of two, as many as there is room for", () => {
    assert.deepEqual(lib.doublings(30, 1640, 9), [32, 64, 128, 256, 512, 1024]);
    assert.deepEqual(lib.doublings(30, 1640, 4), [64, 256, 1024]);
    assert.deepEqual(lib.doublings(33, 40, 4), []);
});

test("a scale leads there and back, and every doubling is as wide", () => {
    const scale = lib.curveScale(POINTS, 0, 400);
    for (const mb of [64, 100, 820, 1639]) {
        assert.ok(Math.abs(scale.mb(scale.x(mb)) / mb - 1) < 1e-3);
    }
    assert.ok(Math.abs(scale.x(128) - scale.x(64) - (scale.x(1024) - scale.x(512))) < 0.02);
    assert.equal(scale.y(0), scale.bottom);
    assert.ok(scale.y(5.81) < scale.y(4.35));
    assert.deepEqual([scale.mb(-50), scale.x(1), scale.x(99999)], [64, scale.left, scale.right]);
    assert.ok(lib.curveScale(POINTS, 9, 400).y(9) > 0, "what was measured has room");
});

test("paths begin and end with the curve", () => {
    const scale = lib.curveScale(POINTS, 0, 400);
    assert.match(lib.linePath(POINTS, scale), /^M[\d.]+ [\d.]+(L[\d.]+ [\d.]+){2}$/);
    assert.match(lib.areaPath(POINTS, scale), /Z$/);
    assert.equal(lib.areaPath([], lib.curveScale([], 0, 400)), "");
});

test("between two points the speed is on the line", () => {
    assert.deepEqual([1, 64, 160, 256, 5000].map((mb) => lib.speedAt(POINTS, mb)), [4.35, 4.35, (4.35 + 5) / 2, 5, 5.81]);
});

test("where the slider stops: the curve's sizes, or what the card has", () => {
    assert.deepEqual(lib.sizes(POINTS), [64, 256, 1639]);
    assert.deepEqual(lib.sizes([[2, 1, 1], [16, 1, 1]]), [16]);
    const before = lib.sizes([], 2 * 1024 ** 3);
    assert.deepEqual([...before.slice(0, 7), before.at(-1)], [32, 40, 48, 64, 80, 96, 128, 2048]);
    assert.equal(lib.sizes([], undefined).at(-1), 8192);
    assert.deepEqual([0, 64, 200, 99999].map((mb) => lib.placeOf(mb, [64, 256, 1639])), [0, 1, 2, 3]);
});

test("a typed size is what is used", () => {
    const typed = ["7", "123.4", "1e3", "-5", "", "x", "99999"];
    assert.deepEqual(typed.map((text) => lib.usable(text, [])), [16, 123, 1000, 0, 0, 0, 65536]);
    assert.equal(lib.usable("20", POINTS), 64, "its largest layer needs that");
});

test("presets: the knee, half of it, everything; before there is a curve, fractions of the card", () => {
    assert.deepEqual(lib.presets(POINTS, 256), [[64, 4.35], [256, 5], [1639, 5.81]]);
    assert.deepEqual(lib.presets(POINTS, 1639), [[256, 5], [1639, 5.81]]);
    const sizes = (gib) => lib.presets([], undefined, gib * 1024 ** 3).map((one) => one[0]);
    assert.deepEqual(sizes(4), [128, 256, 512, 1024]);
    assert.deepEqual(sizes(3.8), [128, 256, 512, 1024]);
    assert.deepEqual(sizes(2), [64, 128, 256, 512]);
    assert.deepEqual(lib.presets([], undefined, undefined), []);
});

test("bars stack what stays on what streams", () => {
    const blocks = [
        ["time_embed", 0.1, [[0, 100]]], ["input_blocks.0", 1, [[1, 300], [0, 100]]], ["input_blocks.1", 1, [[1, 50]]],
        ...[2, 3, 4, 5, 6, 7, 8, 9].map((n) => [`input_blocks.${n}`, 1, [[1, 10]]]),
    ];
    const found = lib.bars(blocks, 400);
    assert.equal(found.resident.match(/M/g).length, 2);
    assert.equal(found.streamed.match(/M/g).length, 10);
    assert.deepEqual(found.groups.map((group) => group.name), ["input blocks"]);
    assert.equal(lib.blockAt(blocks, 0, 400), 0);
    assert.equal(lib.blockAt(blocks, 399, 400), blocks.length - 1);
    assert.deepEqual(lib.bars([], 400).groups, []);
    const guests = [
        ...[0, 1, 2, 3].map((n) => [`ControlNet/input_blocks.${n}`, 1, [[1, 10]]]),
        ...[0, 1, 2, 3].map((n) => [`ControlNet 2/zero_convs.${n}`, 1, [[1, 10]]]),
        ...[0, 1, 2, 3].map((n) => [`input_blocks.${n}`, 1, [[1, 10]]]),
    ];
    assert.deepEqual(lib.bars(guests, 400).groups.map((group) => group.name), ["ControlNet", "ControlNet 2", "input blocks"]);
});
