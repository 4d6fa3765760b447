/* Run by `node --test tests/ui/*.test.mjs`: what the page's JavaScript computes, without a page. */

import assert from "node:assert/strict";
import {afterEach, test} from "node:test";
import {readFileSync} from "node:fs";

for (const name of ["text", "draw", "poll"]) {
    const source = readFileSync(new URL(`../../javascript/async_lowvram_${name}.js`, import.meta.url), "utf8");
    (0, eval)(source);
}
const lib = globalThis.asyncLowvram;
const GIB = 1024 ** 3;
const texts = {
    vram: "VRAM {} / {} GB", weights: "weights {} MB", speed: "{} it/s", waits: "waits {} %", next: "next", busy: "busy",
    measuring: "measuring", off_verdict: "Off.", next_verdict: "On.", measuring_verdict: "Measuring.", full: "full {} {}",
    full_windows: "windows {} {}", used: "{} of {}: {} + {}", streamed: "{} MB {} copies {} GB/s", step: "{} ms",
    step_predicted: "{} ms, {} predicted, {} best", pinned: "{} MB", pinned_pageable: "{} and {}", nothing: "nothing",
};

function status(ours, system) {
    return {cuda: system ? {system} : {error: "unavailable"}, async_lowvram: {state: "streaming", ...ours}};
}

afterEach(() => {
    delete globalThis.localization;
});

test("numbers fill the braces, in the user's language if there is one", () => {
    assert.equal(lib.say("waits {} %", 12), "waits 12 %");
    globalThis.localization = {"waits {} %": "待ち {} %", "waiting {} % of {}": "{} % / {}"};
    assert.equal(lib.say("waits {} %", 12), "待ち 12 %");
    assert.equal(lib.translate("waiting 12 % of 3.5"), "12 % / 3.5");
    assert.equal(lib.translate("never heard 4 times"), "never heard 4 times");
    assert.equal(lib.translate(null), "");
});

test("the header line has what is known, and nothing else", () => {
    const system = {free: 1.4 * GIB, used: 2.6 * GIB, total: 4 * GIB};
    const all = {arena_mib: 256.4, it_s: 3.7, stall_share: 0.123};
    assert.equal(lib.headerLine(status(all, system), texts), "VRAM 2.6 / 4.0 GB · weights 256 MB · 3.70 it/s · waits 12 %");
    assert.equal(lib.headerLine(status({state: "off"}, system), texts), "VRAM 2.6 / 4.0 GB");
    assert.equal(lib.headerLine(status({state: "next"}, system), texts), "VRAM 2.6 / 4.0 GB · next");
    assert.equal(lib.headerLine(status({state: "busy"}), texts), "busy");
    assert.equal(lib.headerLine(status({state: "measuring", arena_mib: 16, it_s: null, stall_share: null}), texts), "weights 16 MB · measuring");
    assert.equal(lib.headerLine(status({arena_mib: 0, it_s: 123.4, stall_share: 0}), texts), "123 it/s · waits 0 %");
    assert.equal(lib.headerLine(status({state: "off"}), texts), "");
});

test("the verdict is a sentence", () => {
    assert.equal(lib.verdictLine(status({verdict: "compute-bound: fine"}), texts), "Compute-bound: fine.");
    assert.equal(lib.verdictLine(status({state: "off", verdict: "old"}), texts), "Off.");
    assert.equal(lib.verdictLine(status({state: "next"}), texts), "On.");
    assert.equal(lib.verdictLine(status({state: "measuring"}), texts), "Measuring.");
});

test("a nearly full card is mentioned, on Windows with what to do", () => {
    const full = {free: 0.1 * GIB, used: 3.9 * GIB, total: 4 * GIB};
    assert.equal(lib.warningLine(status({platform: "linux"}, full), texts), "full 3.9 4.0");
    assert.equal(lib.warningLine(status({platform: "win32"}, full), texts), "windows 3.9 4.0");
    assert.equal(lib.warningLine(status({}, {free: GIB, used: 3 * GIB, total: 4 * GIB}), texts), "");
    assert.equal(lib.warningLine(status({}), texts), "");
});

test("facts wait for numbers", () => {
    assert.equal(lib.facts({weights_mib: null}, texts), null);
    const known = {weights_mib: 1639, resident_mib: 127, ring_mib: 129, bytes_per_step: 1048576 * 1513, streamed_units: 64,
        h2d_gbps: 12.04, step_ms: 199.96, predicted_ms: 184, limit_ms: 180.4, pinned_mib: 1639, pageable_mib: 0};
    assert.deepEqual(lib.facts(known, texts), {
        used: "256 of 1639: 127 + 129", step: "200 ms, 184 predicted, 180 best", streamed: "1513 MB 64 copies 12.0 GB/s", pinned: "1639 MB",
    });
    assert.equal(lib.facts({...known, step_ms: 99.96}, texts).step, "100.0 ms", "a bound that was beaten is none");
    assert.equal(lib.facts({...known, pageable_mib: 5, step_ms: null}, texts).pinned, "1639 and 5.0");
});

test("presets grow with the card and end with the weights", () => {
    assert.deepEqual(lib.presets(4 * GIB, null), [128, 256, 512, 1024]);
    assert.deepEqual(lib.presets(3.8 * GIB, null), [128, 256, 512, 1024]);
    assert.deepEqual(lib.presets(8 * GIB, 1639), [256, 512, 1024]);
    assert.deepEqual(lib.presets(2 * GIB, null), [64, 128, 256, 512]);
    assert.deepEqual(lib.presets(undefined, null), []);
});
