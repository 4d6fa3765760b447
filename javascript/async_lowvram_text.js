/* Async lowvram: numbers and sentences. Pure functions; tests/ui/*.test.mjs run them under node. */

(function(root) {
    "use strict";

    const MIB = 1024 * 1024;
    const GIB = 1024 * MIB;

    /** `text` in the user's language, with each "{}" replaced by the next of `values`. */
    function say(text, ...values) {
        const translated = (root.localization && root.localization[text]) || text;
        let next = 0;
        return translated.replace(/\{\}/g, () => values[next++]);
    }

    function gigabytes(bytes) {
        return (bytes / GIB).toFixed(1);
    }

    function megabytes(mib) {
        return mib > 0 && mib < 10 ? mib.toFixed(1) : String(Math.round(mib));
    }

    function speed(perSecond) {
        return perSecond.toFixed(perSecond < 10 ? 2 : perSecond < 100 ? 1 : 0);
    }

    function rate(gbps) {
        return gbps.toFixed(gbps < 1 ? 2 : 1);
    }

    function known(value) {
        return typeof value === "number" && isFinite(value);
    }

    /** The line in the accordion's header, after on or off. `choice` is the page's own {enabled, buffer_mb}. */
    function headerLine(status, choice, texts) {
        const ours = status.async_lowvram, system = (status.cuda || {}).system;
        const parts = [];
        if (ours.interval_s > 0 && system) {
            parts.push(say(texts.vram, gigabytes(system.used), gigabytes(system.total)));
        }
        if (choice.enabled && ours.state === "busy") {
            parts.push(say(texts.busy));
        } else if (choice.enabled && ours.interval_s > 0 && known(ours.it_s)) {
            parts.push(say(texts.speed, speed(ours.it_s)));
        }
        if (ours.last_error) {
            parts.push(say(texts.trouble));
        }
        return parts.join(" · ");
    }

    /** The sentence, what its button would choose, and a remark: {text, button, choice, remark, key}. With the same `key`
        only speeds differ. */
    function sentence(status, choice, curve, texts) {
        const ours = status.async_lowvram;
        const streams = ours.state === "streaming" || ours.state === "busy";
        if (!choice.enabled) {
            const text = say(streams ? texts.off_next : texts.is_off);
            return {text, button: say(texts.switch_on), choice: {enabled: true}};
        }
        if (!(ours.interval_s > 0)) {
            return {text: say(texts.unread)};
        }
        if (!streams) {
            return {text: say(texts.next)};
        }
        if (ours.state === "busy") {
            return {text: say(texts.busy)};
        }
        if (known(ours.vram_mb) && choice.buffer_mb !== ours.vram_mb) {
            return {text: pending(choice.buffer_mb, curve, ours, texts)};
        }
        if (!ours.advice) {
            const [now, later] = ours.sampling ? [texts.measuring, texts.measured] : [texts.short, texts.working];
            return {text: say(ours.measured ? later : now)};
        }
        return advised(status, texts);
    }

    function pending(size, curve, ours, texts) {
        const point = curve.find((one) => one[0] === size);
        return !size ? say(texts.pending_auto) :
            point ? say(texts.pending_speed, size, speed(point[2] * honesty(curve, ours))) : say(texts.pending, size);
    }

    /** What was measured, by what the curve says of that size: promises are made with it. */
    function honesty(curve, ours) {
        return ours.advice && curve.length ? ours.advice.now / root.asyncLowvram.speedAt(curve, ours.budget_mb) : 1;
    }

    /** What the server advises: see `advice` in lib_async_mover/webui/page/advice.py. */
    function advised(status, texts) {
        const ours = status.async_lowvram, {kind, mb, now, it_s} = ours.advice;
        const system = (status.cuda || {}).system || {used: 0, total: 0};
        const card = [gigabytes(system.used), gigabytes(system.total)];
        const spare = megabytes(ours.budget_mb - mb), bus = rate(ours.h2d_gbps || 0);
        const [text, ...values] = {
            larger: [texts.larger, speed(now), mb, speed(it_s)],
            smaller: [texts.smaller, speed(now), mb, spare],
            best: [texts.best, speed(now)],
            copies: [texts.copies, speed(now), bus],
            copies_fp8: [texts.copies_fp8, speed(now), bus],
            auto: [texts.auto, speed(now), megabytes(mb)],
            auto_most: [texts.auto_most, speed(now), megabytes(mb)],
            full: [texts.full, ...card, mb, spare, speed(it_s)],
            full_most: [texts.full_most, ...card],
        }[kind];
        const remark = kind.startsWith("full") && ours.platform === "win32" ? say(texts.windows) : "";
        const offered = {text: say(text, ...values), remark, key: `${kind} ${mb}`};
        return ["larger", "smaller", "full"].includes(kind) ?
            {...offered, button: say(texts.use, mb), choice: {buffer_mb: mb}} : offered;
    }

    /** {used, step, waits, streamed, pinned}: what stands in the table; null while nothing streams. */
    function facts(ours, texts) {
        if (!known(ours.weights_mib) || !known(ours.resident_mib)) {
            return null;
        }
        const size = megabytes, nothing = say(texts.nothing);
        const result = {step: nothing};
        result.used = say(
            texts.used, size(ours.resident_mib + ours.ring_mib), size(ours.weights_mib),
            size(ours.resident_mib), size(ours.ring_mib),
        );
        result.waits = known(ours.stall_share) ? say(texts.waits, Math.round(100 * ours.stall_share)) : nothing;
        result.streamed = known(ours.h2d_gbps) && ours.h2d_gbps > 0 ?
            say(texts.streamed, size(ours.bytes_per_step / MIB), ours.streamed_units, rate(ours.h2d_gbps)) :
            nothing;
        if (known(ours.step_ms)) {
            const ms = (value) => value.toFixed(value < 100 ? 1 : 0);
            result.step = known(ours.predicted_ms) && known(ours.limit_ms) && ours.limit_ms <= ours.step_ms ?
                say(texts.step_predicted, ms(ours.step_ms), ms(ours.predicted_ms), ms(ours.limit_ms)) :
                say(texts.step, ms(ours.step_ms));
        }
        result.pinned = ours.pageable_mib > 0 ?
            say(texts.pinned_pageable, size(ours.pinned_mib), size(ours.pageable_mib)) :
            say(texts.pinned, size(ours.pinned_mib));
        return result;
    }

    root.asyncLowvram = Object.assign(root.asyncLowvram || {}, {
        say, headerLine, sentence, honesty, facts, speed, megabytes, known,
    });
})(globalThis);
