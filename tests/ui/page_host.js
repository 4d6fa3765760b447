/* As much of the webui's own script as the extension meets: callbacks once the page is there, and the accordion that is
   an input. */

"use strict";

const loadedCallbacks = [];
let pageIsThere = false;
window.childListChanges = 0;

function gradioApp() {
    return document;
}

function onUiLoaded(callback) {
    loadedCallbacks.push(callback);
}

function updateInput(target) {
    const event = new Event("input", {bubbles: true});
    Object.defineProperty(event, "target", {value: target});
    target.dispatchEvent(event);
}

function inputAccordionChecked(id, checked) {
    const accordion = document.getElementById(id);
    accordion.visibleBox.checked = checked;
    accordion.follow();
}

/* As the host's inputAccordion.js: box and folding are one, until the box is clicked. */
function setUpAccordion(accordion) {
    const header = accordion.querySelector(".label-wrap");
    const hidden = document.querySelector(`#${accordion.id}-checkbox input`);
    const title = header.querySelector("span");
    const isOpen = () => header.classList.contains("open");
    const box = document.createElement("input");
    let linked = true;
    box.type = "checkbox";
    box.checked = isOpen();
    box.id = `${accordion.id}-visible-checkbox`;
    accordion.visibleBox = box;
    accordion.follow = function() {
        if (linked && isOpen() !== box.checked) {
            header.click();
        }
        hidden.checked = box.checked;
        updateInput(hidden);
    };
    header.insertBefore(document.getElementById(`${accordion.id}-extra`), header.lastElementChild);
    title.insertBefore(box, title.firstChild);
    box.addEventListener("click", (event) => {
        linked = false;
        event.stopPropagation();
    });
    box.addEventListener("input", accordion.follow);
    new MutationObserver(function() {
        if (linked) {
            box.checked = isOpen();
            accordion.follow();
        }
    }).observe(header, {attributes: true, attributeFilter: ["class"]});
}

document.addEventListener("DOMContentLoaded", function() {
    new MutationObserver(function(changes) {
        window.childListChanges += changes.length;
        if (!pageIsThere && document.querySelector("#txt2img_generate")) {
            pageIsThere = true;
            document.querySelectorAll(".input-accordion").forEach(setUpAccordion);
            loadedCallbacks.forEach((callback) => callback());
            window.pageLoaded = true;
        }
    }).observe(document, {childList: true, subtree: true});
});
