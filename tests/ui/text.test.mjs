/* Run by `node --test tests/ui/*.test.mjs`: what the page's JavaScript computes, without a page. */

import assert from "node:assert/strict";
import {afterEach, test} from "node:test";
import {readFileSync} from "node:fs";

for (const name of ["text", "sizes", "draw"]) {
    const source = readFileSync(new URL(`../../javascript/async_lowvram_${name}.js`, import.meta.url), "utf8");
    (0, eval)(source);
}
const lib = globalThis.asyncLowvram;
const GIB = 1024 ** 3;
const names = ["on", "off", "vram", "speed", "busy", "trouble", "is_off", "off_next", "next", "unread", "measuring", "short",
    "measured", "working", "pending", "pending_speed", "pending_auto", "larger", "smaller", "best", "copies", "copies_fp8", "auto",
    "auto_most", "full", "full_most", "windows", "use", "switch_on", "nothing", "used", "streamed", "step", "step_predicted",
    "waits", "pinned", "pinned_pageable"];
const texts = Object.fromEntries(names.map((name) => [name, `${name} {} {} {} {} {}`]));
const plain = (text) => text.replace(/( undefined)+/g, "");
const CHOICE = {enabled: true, buffer_mb: 256};

function status(ours, system) {
    return {cuda: system ? {system} : {error: "unavailable"}, async_lowvram: {state: "streaming", interval_s: 1, vram_mb: 256, ...ours}};
}

afterEach(() => {
    delete globalThis.localization;
});

test("numbers fill the braces, in the user's language if there is one", () => {
    assert.equal(lib.say("waits {} %", 12), "waits 12 %");
    globalThis.localization = {"waits {} %": "待ち {} %"};
    assert.equal(lib.say("waits {} %", 12), "待ち 12 %");
});

test("the header line has what is known, and nothing else", () => {
    const system = {free: 1.4 * GIB, used: 2.6 * GIB, total: 4 * GIB};
    const off = {enabled: false, buffer_mb: 256};
    const line = (ours, card, choice = CHOICE) => plain(lib.headerLine(status(ours, card), choice, texts));
    assert.equal(line({it_s: 3.7}, system), "vram 2.6 4.0 · speed 3.70");
    assert.equal(line({it_s: 123.4}), "speed 123");
    assert.equal(line({it_s: 3.7}, system, off), "vram 2.6 4.0");
    assert.equal(line({state: "busy", it_s: 3.7}), "busy");
    assert.equal(line({it_s: null, last_error: "no room"}), "trouble");
    assert.equal(line({it_s: 3.7, interval_s: 0}, system), "", "no readout");
});

test("before there is a measurement, the sentence says what is going on", () => {
    const found = (ours, choice = CHOICE, curve = []) => {
        const {text, button, choice: offered} = lib.sentence(status(ours), choice, curve, texts);
        return [plain(text), button && plain(button), offered];
    };
    const off = {enabled: false, buffer_mb: 0};
    assert.deepEqual(found({state: "off"}, off), ["is_off", "switch_on", {enabled: true}]);
    assert.equal(found({state: "streaming"}, off)[0], "off_next");
    assert.deepEqual(found({state: "off"}), ["next", undefined, undefined]);
    assert.equal(found({interval_s: 0})[0], "unread");
    assert.equal(found({state: "busy"})[0], "busy");
    assert.equal(found({sampling: true})[0], "measuring");
    assert.equal(found({sampling: false})[0], "short");
    assert.equal(found({measured: true, sampling: true})[0], "measured");
    assert.equal(found({measured: true})[0], "working");
    assert.equal(found({}, {enabled: true, buffer_mb: 512})[0], "pending 512");
    assert.equal(found({}, {enabled: true, buffer_mb: 512}, [[512, 200, 5]])[0], "pending_speed 512 5.00");
    const slower = {advice: {now: 2}, budget_mb: 256};
    assert.equal(found(slower, {enabled: true, buffer_mb: 512}, [[256, 1, 4], [512, 1, 5]])[0], "pending_speed 512 2.50");
    assert.equal(found({}, {enabled: true, buffer_mb: 0})[0], "pending_auto");
});

test("and then what to do, with a button where there is something", () => {
    const card = {free: 0.1 * GIB, used: 3.9 * GIB, total: 4 * GIB};
    const found = (kind, more = {}) => {
        const ours = {advice: {kind, mb: 128, now: 5, it_s: 5.5}, budget_mb: 256, h2d_gbps: 6.04, ...more};
        const {text, button, choice, remark} = lib.sentence(status(ours, card), CHOICE, [], texts);
        return [plain(text) + (remark ? ` / ${plain(remark)}` : ""), button && plain(button), choice];
    };
    const button = ["use 128", {buffer_mb: 128}];
    assert.deepEqual(found("larger"), ["larger 5.00 128 5.50", ...button]);
    assert.deepEqual(found("smaller"), ["smaller 5.00 128 128", ...button]);
    assert.deepEqual(found("best"), ["best 5.00", undefined, undefined]);
    assert.equal(found("copies")[0], "copies 5.00 6.0");
    assert.equal(found("copies_fp8")[0], "copies_fp8 5.00 6.0");
    assert.equal(found("auto")[0], "auto 5.00 128");
    assert.equal(found("auto_most")[0], "auto_most 5.00 128");
    assert.deepEqual(found("full"), ["full 3.9 4.0 128 128 5.50", ...button]);
    assert.equal(found("full_most", {platform: "linux"})[0], "full_most 3.9 4.0");
    assert.equal(found("full_most", {platform: "win32"})[0], "full_most 3.9 4.0 / windows");
});

test("facts wait for numbers", () => {
    assert.equal(lib.facts({weights_mib: null}, texts), null);
    const known = {weights_mib: 1639, resident_mib: 127, ring_mib: 129, bytes_per_step: 1048576 * 1513, streamed_units: 64,
        h2d_gbps: 12.04, step_ms: 199.96, predicted_ms: 184, limit_ms: 180.4, pinned_mib: 1639, pageable_mib: 0, stall_share: 0.123};
    const found = (more) => Object.fromEntries(Object.entries(lib.facts({...known, ...more}, texts)).map(([k, v]) => [k, plain(v)]));
    assert.deepEqual(found({}), {
        used: "used 256 1639 127 129", step: "step_predicted 200 184 180", waits: "waits 12", streamed: "streamed 1513 64 12.0",
        pinned: "pinned 1639",
    });
    assert.equal(found({step_ms: 99.96}).step, "step 100.0", "a bound that was beaten is none");
    assert.equal(found({pageable_mib: 5, step_ms: null}).pinned, "pinned_pageable 1639 5.0");
});
