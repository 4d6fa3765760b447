/* When it asks, and when it does not: time is played. */

import assert from "node:assert/strict";
import {test} from "node:test";
import {readFileSync} from "node:fs";

(0, eval)(readFileSync(new URL("../../javascript/async_lowvram_poll.js", import.meta.url), "utf8"));

function play({answers, seen = () => true}) {
    const waits = [], shown = [], failed = [];
    let asked = 0, due = null;
    const poller = new globalThis.asyncLowvram.Poller({
        ask: async() => {
            const answer = answers[Math.min(asked++, answers.length - 1)];
            if (answer instanceof Error) {
                throw answer;
            }
            return answer;
        },
        visible: seen,
        show: (body) => shown.push(body),
        fail: (code, seconds) => failed.push([code, seconds]),
        later: (callback, seconds) => {
            waits.push(seconds);
            due = callback;
        },
    });
    const next = async() => {
        const callback = due;
        due = null;
        await callback();
    };
    const settle = () => new Promise((resolve) => setImmediate(resolve));
    return {poller, waits, shown, failed, next, settle, asked: () => asked, due: () => due};
}

const fine = {ok: true, status: 200, body: 1};
const broken = {ok: false, status: 500, body: null};

test("one request at a time, a second apart", async() => {
    const one = play({answers: [fine]});
    one.poller.start();
    one.poller.start();
    await one.settle();
    await one.next();
    assert.equal(one.asked(), 2);
    assert.deepEqual(one.waits, [1, 1]);
    one.poller.setInterval(0.2);
    await one.next();
    assert.equal(one.waits.at(-1), 1, "never more often");
    one.poller.setInterval(5);
    await one.next();
    assert.equal(one.waits.at(-1), 5);
});

test("errors back off to a minute, and one good answer ends that", async() => {
    const one = play({answers: [...Array(8).fill(broken), new TypeError("no network"), fine]});
    one.poller.start();
    await one.settle();
    for (let i = 0; i < 9; i++) {
        await one.next();
    }
    assert.deepEqual(one.waits, [2, 4, 8, 16, 32, 60, 60, 60, 60, 1]);
    assert.equal(one.failed.length, 9);
    assert.deepEqual(one.failed.at(-1), [0, 60]);
    assert.deepEqual(one.shown, [1]);
});

test("out of sight it asks nothing", async() => {
    let seen = false;
    const one = play({answers: [fine], seen: () => seen});
    one.poller.start();
    await one.settle();
    await one.next();
    assert.equal(one.asked(), 0);
    seen = true;
    await one.next();
    assert.equal(one.asked(), 1);
});

test("a login is waited for, an interval of 0 ends it, stop stops", async() => {
    const login = play({answers: [{ok: false, status: 401, body: null}]});
    login.poller.start();
    await login.settle();
    assert.deepEqual(login.waits, [30]);
    login.poller.stop();
    await login.next();
    assert.equal(login.asked(), 1);
    const once = play({answers: [fine]});
    once.poller.setInterval(0);
    once.poller.start();
    await once.settle();
    assert.equal(once.due(), null);
});
