/* Async lowvram: numbers and sentences. Pure functions; tests/ui/*.test.mjs run them under node. */

(function(root) {
    "use strict";

    const MIB = 1024 * 1024;
    const GIB = 1024 * MIB;
    const NUMBER = /\d+(?:\.\d+)?/g;

    /** `text` in the user's language, with each "{}" replaced by the next of `values`. */
    function say(text, ...values) {
        const translated = (root.localization && root.localization[text]) || text;
        let next = 0;
        return translated.replace(/\{\}/g, () => values[next++]);
    }

    /** A finished sentence of the server's: looked up with its numbers taken out. */
    function translate(sentence) {
        if (!sentence) {
            return "";
        }
        const whole = root.localization && root.localization[sentence];
        return whole || say(sentence.replace(NUMBER, "{}"), ...(sentence.match(NUMBER) || []));
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

    function share(fraction) {
        return String(Math.round(100 * fraction));
    }

    function known(value) {
        return typeof value === "number" && isFinite(value);
    }

    /** The line in the accordion's header. `texts` are the strings that came with the page. */
    function headerLine(status, texts) {
        const ours = status.async_lowvram;
        const system = status.cuda && status.cuda.system;
        const parts = [];
        if (system) {
            parts.push(say(texts.vram, gigabytes(system.used), gigabytes(system.total)));
        }
        if (ours.state === "next") {
            parts.push(say(texts.next));
        } else if (ours.state === "busy") {
            parts.push(say(texts.busy));
        } else if (ours.state !== "off") {
            if (ours.arena_mib > 0) {
                parts.push(say(texts.weights, megabytes(ours.arena_mib)));
            }
            if (known(ours.it_s)) {
                parts.push(say(texts.speed, speed(ours.it_s)));
            }
            if (known(ours.stall_share)) {
                parts.push(say(texts.waits, share(ours.stall_share)));
            }
            if (ours.state === "measuring") {
                parts.push(say(texts.measuring));
            }
        }
        return parts.join(" · ");
    }

    /** The sentence under the slider. */
    function verdictLine(status, texts) {
        const ours = status.async_lowvram;
        if (ours.verdict && ours.state !== "off") {
            const sentence = translate(ours.verdict);
            return sentence.charAt(0).toUpperCase() + sentence.slice(1) + (/\w$/.test(sentence) ? "." : "");
        }
        if (ours.state === "off") {
            return say(texts.off_verdict);
        }
        return say(ours.state === "next" ? texts.next_verdict : texts.measuring_verdict);
    }

    /** A calm word when the card is nearly full, else "". */
    function warningLine(status, texts) {
        const system = status.cuda && status.cuda.system;
        if (!system || system.free > Math.max(256 * MIB, 0.03 * system.total)) {
            return "";
        }
        const text = status.async_lowvram.platform === "win32" ? texts.full_windows : texts.full;
        return say(text, gigabytes(system.used), gigabytes(system.total));
    }

    /** {used, step, streamed, pinned}: what stands in the table; null while nothing streams. */
    function facts(ours, texts) {
        if (!known(ours.weights_mib) || !known(ours.resident_mib)) {
            return null;
        }
        const size = megabytes;
        const result = {step: say(texts.nothing)};
        result.used = say(
            texts.used, size(ours.resident_mib + ours.ring_mib), size(ours.weights_mib),
            size(ours.resident_mib), size(ours.ring_mib),
        );
        result.streamed = known(ours.h2d_gbps) && ours.h2d_gbps > 0 ?
            say(texts.streamed, size(ours.bytes_per_step / MIB), ours.streamed_units, ours.h2d_gbps.toFixed(1)) :
            say(texts.nothing);
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

    /** Buffer sizes worth a button, from a 32nd to a quarter of the card, none larger than the weights. */
    function presets(totalBytes, weightsMib) {
        if (!totalBytes) {
            return [];
        }
        const unit = Math.max(1, Math.round(totalBytes / GIB / 2)) * 64;
        const most = known(weightsMib) ? weightsMib : Infinity;
        return [unit, 2 * unit, 4 * unit, 8 * unit].filter((size) => size <= Math.min(most, 8192));
    }

    root.asyncLowvram = Object.assign(root.asyncLowvram || {}, {
        say, translate, headerLine, verdictLine, warningLine, facts, presets, speed, megabytes,
    });
})(globalThis);
