/* Async lowvram: one accordion, what it shows and what its controls do. It only changes text nodes, attributes and
   styles: the webui wakes every extension when elements come or go. */

(function(root) {
    "use strict";

    const lib = root.asyncLowvram = root.asyncLowvram || {};

    /** One accordion: its parts by their `data-alv` name. */
    class Panel {
        constructor(tab, element) {
            this.tab = tab;
            this.root = element;
            this.status = null;
            this.details = {revision: 0, curve: [], blocks: []};
            this.base = `script_${tab}_async_lowvram_`;
            this.texts = JSON.parse(element.dataset.strings);
            this.accordion = gradioApp().getElementById(`${this.base}enabled`);
            this.readout = this.accordion.querySelector("[data-alv=readout]");
            this.point = -1;
            this.listen();
        }

        one(name) {
            return this.root.querySelector(`[data-alv="${name}"]`);
        }

        all(name) {
            return [...this.root.querySelectorAll(`[data-alv="${name}"]`)];
        }

        number() {
            return gradioApp().querySelector(`#${this.base}buffer_mb input[type=number]`);
        }

        box() {
            return gradioApp().querySelector(`#${this.base}enabled-checkbox input`);
        }

        get buffer() {
            return Number((this.number() || {}).value) || 0;
        }

        set buffer(mb) {
            const input = this.number();
            if (input && Number(input.value) !== mb) {
                input.value = mb;
                updateInput(input);
            }
        }

        get enabled() {
            return Boolean((this.box() || {}).checked);
        }

        set enabled(value) {
            if (this.box() && this.enabled !== value) {
                inputAccordionChecked(`${this.base}enabled`, value);
            }
        }

        /** Is `target` one of the two inputs? */
        owns(target) {
            return target === this.box() || Boolean(target.closest && target.closest(`#${this.base}buffer_mb`));
        }

        seen() {
            return this.readout.getClientRects().length > 0;
        }

        listen() {
            this.one("auto").addEventListener("click", () => (this.buffer = 0));
            this.all("preset").forEach((b) => b.addEventListener("click", () => (this.buffer = Number(b.dataset.mb))));
            const svg = this.one("curve-svg");
            svg.addEventListener("pointermove", (event) => this.aim(lib.nearest(this.details.curve, this.mbAt(svg, event))));
            svg.addEventListener("pointerleave", () => this.aim(-1));
            svg.addEventListener("blur", () => this.aim(-1));
            svg.addEventListener("click", (event) => this.take(lib.nearest(this.details.curve, this.mbAt(svg, event))));
            svg.addEventListener("keydown", (event) => this.onKey(event));
            const blocks = this.one("blocks-svg");
            blocks.addEventListener("pointermove", (event) => this.showBlock(lib.blockAt(this.details.blocks, xIn(blocks, event))));
            blocks.addEventListener("pointerleave", () => this.showBlock(-1));
        }

        mbAt(svg, event) {
            return lib.curveScale(this.details.curve, this.measured()).mb(xIn(svg, event));
        }

        measured() {
            return this.status ? this.status.async_lowvram.it_s : 0;
        }

        onKey(event) {
            const points = this.details.curve;
            const start = this.point >= 0 ? this.point : lib.nearest(points, this.buffer);
            const moves = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -points.length, End: points.length};
            if (event.key in moves) {
                this.aim(Math.max(0, Math.min(points.length - 1, start + moves[event.key])));
            } else if (event.key === "Enter" || event.key === " ") {
                this.take(start);
            } else {
                return;
            }
            event.preventDefault();
        }

        /** Point at a size of the curve, without choosing it; -1 at none. */
        aim(index) {
            this.point = index;
            const point = this.details.curve[index];
            const cursor = this.one("cursor"), ring = this.one("ring"), svg = this.one("curve-svg");
            for (const mark of [cursor, ring]) {
                mark.setAttribute("visibility", point ? "visible" : "hidden");
            }
            if (!point) {
                write(this.one("curve-note"), this.one("curve-note").dataset.text);
                return;
            }
            const scale = lib.curveScale(this.details.curve, this.measured());
            const text = lib.say(this.texts.curve_point, lib.sliderSize(point[0]), lib.speed(point[2]));
            place(cursor, {x1: scale.x(point[0]), x2: scale.x(point[0]), y1: scale.y(scale.maxIts), y2: scale.bottom});
            place(ring, {cx: scale.x(point[0]), cy: scale.y(point[2])});
            place(svg, {"aria-valuenow": Math.round(point[0]), "aria-valuetext": text});
            write(this.one("curve-note"), text);
        }

        take(index) {
            if (this.details.curve[index]) {
                this.buffer = lib.sliderSize(this.details.curve[index][0]);
                this.aim(index);
            }
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
            const ours = status.async_lowvram;
            this.say(lib.headerLine(status, this.texts));
            write(this.one("verdict"), lib.verdictLine(status, this.texts));
            showIf(this.one("warning"), lib.warningLine(status, this.texts));
            showIf(this.one("error"), lib.translate(ours.last_error));
            this.showPresets(lib.presets(((status.cuda || {}).system || {}).total, ours.weights_mib));
            const facts = lib.facts(ours, this.texts);
            this.one("facts").hidden = !facts;
            for (const name of Object.keys(facts || {})) {
                write(this.one(name), facts[name]);
            }
            this.showDot(ours);
        }

        say(text) {
            write(this.readout, text);
            this.readout.title = text;
        }

        showPresets(sizes) {
            this.one("presets-heading").hidden = !sizes.length;
            this.all("preset").forEach((button, index) => {
                button.hidden = !(index < sizes.length);
                if (index < sizes.length && button.dataset.mb !== String(sizes[index])) {
                    button.dataset.mb = sizes[index];
                    write(button, lib.say(this.texts.preset, sizes[index]));
                }
            });
        }

        showDot(ours) {
            const seen = this.details.curve.length > 0 && ours.it_s > 0 && ours.budget_mb > 0;
            this.one("dot").setAttribute("visibility", seen ? "visible" : "hidden");
            if (seen) {
                const scale = lib.curveScale(this.details.curve, ours.it_s);
                place(this.one("dot"), {cx: scale.x(ours.budget_mb), cy: scale.y(ours.it_s)});
                this.drawCurve(scale);
            }
        }

        /** New details have come. */
        draw(details) {
            this.details = details;
            this.one("curve").hidden = this.details.curve.length < 2;
            this.one("picture").hidden = this.details.blocks.length === 0;
            const note = this.one("curve-note");
            note.dataset.text = note.dataset.text || note.firstChild.nodeValue;
            this.drawCurve(lib.curveScale(this.details.curve, this.measured()));
            this.drawBlocks();
        }

        drawCurve(scale) {
            const points = this.details.curve;
            place(this.one("line"), {d: lib.linePath(points, scale)});
            place(this.one("area"), {d: lib.areaPath(points, scale)});
            const svg = this.one("curve-svg");
            place(svg, {"aria-valuemin": Math.round((points[0] || [0])[0]), "aria-valuemax": Math.round(scale.maxMb)});
            this.drawTicks("x", lib.ticks(scale.maxMb, 6), (mb, line, text) => {
                place(line, {x1: scale.x(mb), x2: scale.x(mb), y1: scale.bottom, y2: scale.bottom + 3});
                place(text, {x: scale.x(mb), y: scale.bottom + 12});
            });
            this.drawTicks("y", lib.ticks(scale.maxIts, 5), (its, line, text) => {
                place(line, {x1: scale.left, x2: scale.right, y1: scale.y(its), y2: scale.y(its)});
                place(text, {x: scale.left - 4, y: scale.y(its) + 3});
            });
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
            const found = lib.bars(this.details.blocks);
            place(this.one("resident"), {d: found.resident});
            place(this.one("streamed-bars"), {d: found.streamed});
            this.all("group").forEach((label, index) => {
                const group = found.groups[index];
                write(label, group ? group.name : "");
                place(label, {x: group ? group.x : 0, y: lib.BLOCKS.height - 5});
            });
            this.showBlock(-1);
        }
    }

    function xIn(svg, event) {
        const rect = svg.getBoundingClientRect();
        return (event.clientX - rect.left) / rect.width * svg.viewBox.baseVal.width;
    }

    function write(element, text) {
        if (element && element.firstChild && element.firstChild.nodeValue !== text) {
            element.firstChild.nodeValue = text;
        }
    }

    function showIf(element, text) {
        write(element, text);
        element.hidden = !text;
    }

    function place(element, attributes) {
        for (const [name, value] of Object.entries(attributes)) {
            element.setAttribute(name, value);
        }
    }

    Object.assign(lib, {Panel});
})(globalThis);
