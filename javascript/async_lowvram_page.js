/* Async lowvram: ties its accordions to the status route, to each other, and to what the server remembers. */

(function() {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const CHOICE_DELAY_MS = 400;
    const lib = globalThis.asyncLowvram = globalThis.asyncLowvram || {};
    let panels = [];
    let poller = null;
    let wantedRevision = 0;
    let choiceTimer = null;
    let last = null;

    function get(path, options) {
        const key = panels.length ? panels[0].root.dataset.key : "";
        return fetch(path, {...options, headers: {"X-Async-Lowvram-Key": key, ...(options || {}).headers}});
    }

    async function askStatus() {
        const answer = await get("async-lowvram/status");
        return {ok: answer.ok, status: answer.status, body: answer.ok ? await answer.json() : null};
    }

    async function askDetails(revision) {
        if (revision === wantedRevision) {
            return;
        }
        wantedRevision = revision;
        const answer = await get("async-lowvram/details");
        if (answer.ok) {
            const details = await answer.json();
            panels.forEach((panel) => panel.draw(details));
        }
    }

    function showStatus(status) {
        const first = last === null;
        last = status;
        poller.setInterval(status.async_lowvram.interval_s);
        if (first) {
            panels.forEach((panel) => {
                panel.buffer = status.async_lowvram.choice.buffer_mb;
                panel.enabled = status.async_lowvram.choice.enabled;
            });
        }
        panels.forEach((panel) => panel.show(status));
        askDetails(status.async_lowvram.revision).catch(() => (wantedRevision = 0));
    }

    function showFailure(code, seconds) {
        panels.forEach((panel) => {
            panel.say(code === 401 ? lib.say(panel.texts.login) : lib.say(panel.texts.silent, Math.round(seconds)));
        });
    }

    /** A control was changed by hand: the other tab follows, and the server remembers. */
    function onInput(event) {
        const panel = panels.find((one) => one.owns(event.target));
        if (!panel || last === null) {
            return;
        }
        clearTimeout(choiceTimer);
        choiceTimer = setTimeout(() => {
            const choice = {enabled: panel.enabled, buffer_mb: panel.buffer};
            panels.forEach((other) => {
                other.buffer = choice.buffer_mb;
                other.enabled = choice.enabled;
            });
            const known = last.async_lowvram.choice;
            if (known.enabled !== choice.enabled || known.buffer_mb !== choice.buffer_mb) {
                Object.assign(known, choice);
                const headers = {"Content-Type": "application/json"};
                showInSettings(choice);
                get("async-lowvram/choice", {method: "POST", headers, body: JSON.stringify(choice)}).catch(() => null);
            }
        }, CHOICE_DELAY_MS);
    }

    /** The settings page shows what the server remembers: applying other settings there must not undo it. */
    function showInSettings(choice) {
        const box = gradioApp().querySelector("#setting_async_lowvram_enabled input");
        const size = gradioApp().querySelector("#setting_async_lowvram_buffer_mb input[type=number]");
        if (box && size && last.async_lowvram.remembers) {
            box.checked = choice.enabled;
            size.value = choice.buffer_mb;
            updateInput(box);
            updateInput(size);
        }
    }

    onUiLoaded(function() {
        panels = TABS
            .map((tab) => [tab, gradioApp().getElementById(`script_${tab}_async_lowvram_panel`)])
            .filter((found) => found[1])
            .map(([tab, root]) => new lib.Panel(tab, root));
        if (!panels.length) {
            return;
        }
        gradioApp().addEventListener("input", onInput, true);
        poller = new lib.Poller({
            ask: askStatus,
            visible: () => !document.hidden && panels.some((panel) => panel.seen()),
            show: showStatus,
            fail: showFailure,
            later: (callback, seconds) => setTimeout(callback, seconds * 1000),
        });
        poller.start();
    });
})();
