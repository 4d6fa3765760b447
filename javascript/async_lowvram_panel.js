/* Async lowvram: one accordion, what it shows and what its controls do. It only changes text nodes, attributes and
   styles: the webui wakes every extension when elements come or go. */

(function(root) {
    "use strict";

    const lib = root.asyncLowvram = root.asyncLowvram || {};

    /** One accordion: its parts by their `data-alv` name. */
    class Panel {
        constructor(tab, element) {
            this.base = `script_${tab}_async_lowvram_`;
            this.key = element.dataset.key;
            this.texts = JSON.parse(element.dataset.strings);
            this.accordion = gradioApp().getElementById(`${this.base}enabled`);
            this.visibleBox = gradioApp().getElementById(`${this.base}enabled-visible-checkbox`);
            this.status = null;
            this.details = {revision: 0, curve: [], blocks: []};
            this.pointed = null; // size under the pointer, or chosen by the keyboard
            this.legend = this.one("curve-note").firstChild.nodeValue;
            this.keepFoldingApart();
            this.listen();
            this.showSwitch();
        }

        one(name) {
            return this.accordion.querySelector(`[data-alv="${name}"]`);
        }

        all(name) {
            return [...this.accordion.querySelectorAll(`[data-alv="${name}"]`)];
        }

        number() {
            return gradioApp().querySelector(`#${this.base}buffer_mb input[type=number]`);
        }

        box() {
            return gradioApp().querySelector(`#${this.base}enabled-checkbox input`);
        }

        stops() {
            return lib.sizes(this.details.curve, this.cardBytes());
        }

        cardBytes() {
            return (((this.status || {}).cuda || {}).system || {}).total;
        }

        /** What the two inputs say: {enabled, buffer_mb}. */
        get choice() {
            return {enabled: this.box().checked, buffer_mb: lib.usable(this.number().value, this.details.curve)};
        }

        /** Sets what `wanted` has of {enabled, buffer_mb}, as if by hand. */
        choose(wanted) {
            const input = this.number();
            if (lib.known(wanted.buffer_mb) && input.value !== String(wanted.buffer_mb)) {
                input.value = wanted.buffer_mb;
                updateInput(input);
            }
            if (wanted.enabled !== undefined && this.box().checked !== wanted.enabled) {
                inputAccordionChecked(`${this.base}enabled`, wanted.enabled);
            }
        }

        /** Is `target` one of the two inputs, with something to be chosen? Half a number in the field is none yet. */
        chosenBy(target) {
            const input = this.number();
            const typing = target === document.activeElement && input.value !== String(this.choice.buffer_mb);
            return target === this.box() || target === input && !typing;
        }

        seen() {
            return this.one("readout").getClientRects().length > 0;
        }

        /** The host's accordion ties its box to folding until the box is clicked. An Event is a click that ticks nothing.
            Ticking it by hand opens the panel. */
        keepFoldingApart() {
            if (!this.visibleBox) {
                return;
            }
            this.visibleBox.dispatchEvent(new Event("click"));
            this.visibleBox.addEventListener("input", () => {
                const header = this.accordion.querySelector(".label-wrap");
                if (this.visibleBox.checked && !header.classList.contains("open")) {
                    header.click();
                }
            });
        }

        listen() {
            this.number().addEventListener("change", () => this.choose({buffer_mb: this.choice.buffer_mb}));
            this.one("do").addEventListener("click", () => this.choose(this.offered));
            this.one("auto").addEventListener("click", () => this.choose({buffer_mb: 0}));
            this.all("preset").forEach((b) => b.addEventListener("click", () => this.choose({buffer_mb: Number(b.dataset.mb)})));
            const range = this.one("range");
            range.addEventListener("input", () => this.choose({buffer_mb: [0, ...this.stops()][Number(range.value)]}));
            const svg = this.one("curve-svg");
            svg.addEventListener("pointermove", (event) => this.aim(this.sizeAt(event)));
            svg.addEventListener("pointerleave", () => this.aim(null));
            svg.addEventListener("blur", () => this.aim(null));
            svg.addEventListener("click", (event) => this.choose({buffer_mb: this.sizeAt(event)}));
            svg.addEventListener("keydown", (event) => this.onKey(event));
            const blocks = this.one("blocks-svg");
            blocks.addEventListener("pointermove", (event) => this.showBlock(lib.blockAt(this.details.blocks, event.offsetX, blocks.clientWidth)));
            blocks.addEventListener("pointerleave", () => this.showBlock(-1));
            new ResizeObserver(() => this.drawAll()).observe(svg);
        }

        /** The size that a click there chooses. */
        sizeAt(event) {
            const x = event.clientX - this.one("curve-svg").getBoundingClientRect().left;
            const stops = this.stops();
            return stops[lib.nearest(stops.map((mb) => [mb]), this.scale().mb(x))];
        }

        scale() {
            const measured = this.status ? this.status.async_lowvram.it_s : 0;
            return lib.curveScale(this.details.curve, measured, this.one("curve-svg").clientWidth);
        }

        onKey(event) {
            const stops = this.stops(), last = stops.length - 1;
            const start = lib.placeOf(this.pointed || this.choice.buffer_mb, stops) - 1;
            const moves = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -stops.length, End: stops.length};
            if (event.key in moves) {
                this.aim(stops[Math.max(0, Math.min(last, start + moves[event.key]))]);
            } else if (event.key === "Enter" || event.key === " ") {
                this.choose({buffer_mb: stops[Math.max(0, start)]});
            } else {
                return;
            }
            event.preventDefault();
        }

        /** Point at a size of the curve, without choosing it; null at none. */
        aim(mb) {
            const curve = this.details.curve, cursor = this.one("cursor");
            this.pointed = curve.length ? mb : null;
            cursor.setAttribute("visibility", this.pointed ? "visible" : "hidden");
            if (!this.pointed) {
                write(this.one("curve-note"), this.legend);
                return;
            }
            const scale = this.scale(), x = scale.x(mb);
            const text = lib.say(this.texts.curve_point, mb, lib.speed(lib.speedAt(curve, mb)));
            place(cursor, {x1: x, x2: x, y1: scale.y(scale.maxIts), y2: scale.bottom});
            place(this.one("curve-svg"), {"aria-valuenow": mb, "aria-valuetext": text});
            write(this.one("curve-note"), text);
        }

        showBlock(index) {
            const block = this.details.blocks[index];
            const note = this.one("blocks-note");
            if (!block) {
                write(note, lib.say(this.texts.blocks_note));
                return;
            }
            const size = block[2].reduce((sum, span) => sum + span[1], 0) / 1048576;
            write(note, `${block[0].replace(/_/g, " ")}: ${lib.say(this.texts.block, lib.megabytes(size), block[1].toFixed(2))}`);
        }

        /** A status has come. */
        show(status) {
            this.status = status;
            this.render();
        }

        /** The choice or the status has changed. Whether it is on, the box says, not the server. */
        render() {
            this.showSwitch();
            const status = this.status, curve = this.details.curve, choice = this.choice;
            if (!status) {
                return;
            }
            const ours = status.async_lowvram;
            this.say(lib.headerLine(status, choice, this.texts));
            const said = lib.sentence(status, choice, curve, this.texts);
            if (!(ours.sampling && said.key && said.key === this.said)) { // a screen reader reads each change
                write(this.one("sentence"), said.text);
                this.honesty = lib.honesty(curve, ours);
            }
            this.said = said.key;
            this.offered = said.choice;
            showIf(this.one("do"), said.button);
            showIf(this.one("note"), ours.last_error ? lib.say(this.texts.error, ours.last_error) : said.remark);
            this.showSizes(choice, ours);
            const facts = ours.interval_s > 0 ? lib.facts(ours, this.texts) : null;
            this.one("facts").hidden = !facts;
            for (const name of Object.keys(facts || {})) {
                write(this.one(name), facts[name]);
            }
            this.drawCurve();
        }

        showSwitch() {
            const mark = this.one("switch"), on = this.box().checked;
            write(mark, lib.say(on ? this.texts.on : this.texts.off));
            mark.dataset.on = on;
        }

        say(text) {
            write(this.one("readout"), text);
            this.one("readout").title = text;
        }

        showSizes(choice, ours) {
            const range = this.one("range"), stops = this.stops();
            const name = choice.buffer_mb ? lib.say(this.texts.preset, choice.buffer_mb) : lib.say(this.texts.auto_size);
            place(range, {max: stops.length, "aria-valuetext": name});
            range.value = lib.placeOf(choice.buffer_mb, stops);
            this.one("auto").setAttribute("aria-pressed", choice.buffer_mb === 0);
            const presets = lib.presets(this.details.curve, (ours.advice || {}).enough_mb, this.cardBytes());
            this.all("preset").forEach((button, index) => {
                const [mb, its] = presets[index] || [];
                button.dataset.mb = mb;
                button.setAttribute("aria-pressed", choice.buffer_mb === mb);
                showIf(button, mb && (its ? lib.say(this.texts.preset_speed, mb, lib.speed(its * this.honesty)) : lib.say(this.texts.preset, mb)));
            });
        }

        /** New details have come. */
        draw(details) {
            this.details = details;
            this.one("curve").hidden = this.details.curve.length < 2;
            this.one("picture").hidden = this.details.blocks.length === 0;
            this.render();
            this.drawAll();
        }

        drawAll() {
            this.drawCurve();
            this.drawBlocks();
        }

        drawCurve() {
            const svg = this.one("curve-svg"), points = this.details.curve;
            if (!svg.clientWidth || !points.length) {
                return; // folded
            }
            const scale = this.scale(), choice = this.choice;
            place(svg, {viewBox: `0 0 ${svg.clientWidth} ${lib.CURVE.height}`});
            place(svg, {"aria-valuemin": Math.ceil(scale.least), "aria-valuemax": Math.round(scale.most)});
            place(this.one("line"), {d: lib.linePath(points, scale)});
            place(this.one("area"), {d: lib.areaPath(points, scale)});
            place(this.one("x-name"), {x: scale.right, y: lib.CURVE.height - 4});
            this.drawTicks("x", lib.doublings(scale.least, scale.most, Math.min(9, svg.clientWidth / 50)), (mb, line, text) => {
                place(line, {x1: scale.x(mb), x2: scale.x(mb), y1: scale.bottom, y2: scale.bottom + 3});
                place(text, {x: scale.x(mb), y: scale.bottom + 15});
            });
            this.drawTicks("y", lib.ticks(scale.maxIts, 5), (its, line, text) => {
                place(line, {x1: scale.left, x2: scale.right, y1: scale.y(its), y2: scale.y(its)});
                place(text, {x: scale.left - 5, y: scale.y(its) + 4});
            });
            const ours = this.status ? this.status.async_lowvram : {};
            this.drawMark("dot", ours.budget_mb, ours.it_s, scale);
            const chosen = choice.buffer_mb || ours.budget_mb;
            this.drawMark("ring", chosen, chosen && lib.speedAt(points, chosen), scale);
        }

        drawMark(name, mb, its, scale) {
            const seen = mb > 0 && its > 0;
            this.one(name).setAttribute("visibility", seen ? "visible" : "hidden");
            if (seen) {
                place(this.one(name), {cx: scale.x(mb), cy: scale.y(its)});
            }
        }

        drawTicks(axis, values, draw) {
            const lines = this.all(`${axis}-line`), labels = this.all(`${axis}-tick`);
            lines.forEach((line, index) => {
                const there = index < values.length;
                line.setAttribute("visibility", there ? "visible" : "hidden");
                labels[index].setAttribute("visibility", there ? "visible" : "hidden");
                if (there) {
                    write(labels[index], String(values[index]));
                    draw(values[index], line, labels[index]);
                }
            });
        }

        drawBlocks() {
            const svg = this.one("blocks-svg"), wide = svg.clientWidth;
            if (!wide) {
                return; // folded
            }
            const found = lib.bars(this.details.blocks, wide);
            place(svg, {viewBox: `0 0 ${wide} ${lib.BLOCKS.height}`});
            place(this.one("resident"), {d: found.resident});
            place(this.one("streamed-bars"), {d: found.streamed});
            this.one("legend-resident").hidden = !found.resident;
            this.one("legend-streamed").hidden = !found.streamed;
            this.all("group").forEach((label, index) => {
                const group = found.groups[index];
                write(label, group ? group.name : "");
                place(label, {x: group ? group.x : 0, y: lib.BLOCKS.height - 6});
            });
            this.showBlock(-1);
        }
    }

    function write(element, text) {
        if (element && element.firstChild && element.firstChild.nodeValue !== text) {
            element.firstChild.nodeValue = text;
        }
    }

    function showIf(element, text) {
        write(element, text || "");
        element.hidden = !text;
    }

    function place(element, attributes) {
        for (const [name, value] of Object.entries(attributes)) {
            element.setAttribute(name, value);
        }
    }

    Object.assign(lib, {Panel});
})(globalThis);
