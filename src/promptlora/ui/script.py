"""The page's script: clicks on figures, the keyboard, and an address that stores the work."""

from __future__ import annotations

# Runs in the walk's HTML component: a click on a token, a cell or a small picture becomes the component's select event.
CLICKS = """
const numbers = text => text.split(",").map(Number);
const inside = (at, from, to) => Math.floor(Math.min(Math.max((at - from) / (to - from), 0), 0.999999) * 1e6) / 1e6;
element.addEventListener("click", event => {
  const chosen = event.target.closest("[data-at]");
  if (chosen) {
    trigger("select", Object.fromEntries([...new URLSearchParams(chosen.dataset.at)].map(([k, v]) => [k, Number(v)])));
    return;
  }
  const figure = event.target.closest("svg[data-row]");
  const frame = figure && figure.querySelector(".frame").getBoundingClientRect();
  if (!frame || event.clientX < frame.left || event.clientX > frame.right || event.clientY < frame.top || event.clientY > frame.bottom) return;
  const rows = numbers(figure.dataset.rows), columns = numbers(figure.dataset.columns);
  trigger("select", {
    [figure.dataset.row]: rows[Math.floor(inside(event.clientY, frame.top, frame.bottom) * rows.length)],
    [figure.dataset.column]: columns[Math.floor(inside(event.clientX, frame.left, frame.right) * columns.length)],
  });
});
"""

# The text after "#" in the address is what links.py parses. A draft is saved while it is typed; "run" is added once
# there
# are answers. Nothing is written before the page has been restored from the address with which it was opened.
HEAD = """<script>
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#prompt, #inputs"))
    document.getElementById("go").click();
});
window.promptlora = {address: location.hash, restored: false};
(() => {
  const shown = element => element && element.offsetParent !== null;
  const write = () => {
    const prompt = document.querySelector("#prompt textarea"), state = new URLSearchParams();
    if (!prompt || !window.promptlora.restored) return;
    state.set("prompt", prompt.value);
    for (const box of document.querySelectorAll("#inputs textarea")) if (shown(box)) state.append("input", box.value);
    state.set("longest", document.querySelector("#longest input[type=number]").value);
    for (const name of ["other", "rows"]) {
      const box = document.querySelector(`#${name} textarea`);
      if (box && box.value) state.set(name, box.value);
    }
    const walk = document.querySelector("#walk .pl-walk");
    if (walk) for (const name of ["token", "layer", "head"]) if (walk.dataset[name]) state.set(name, walk.dataset[name]);
    const which = document.querySelector("#which input");
    if (walk && which && parseInt(which.value) > 1) state.set("chosen", parseInt(which.value) - 1);
    if (document.querySelector("#answers .pl-answers")) state.set("run", "1");
    history.replaceState(null, "", "#" + state);
  };
  let soon;
  const later = () => { clearTimeout(soon); soon = setTimeout(write, 250); };
  document.addEventListener("input", event => { if (event.target.closest("#prompt, #inputs, #longest, #other, #rows")) later(); });
  new MutationObserver(changes => {
    if (changes.some(one => one.target.parentElement?.closest("#answers, #walk"))) later();
  }).observe(document, {childList: true, subtree: true, attributes: true, attributeFilter: ["data-done", "data-token", "data-layer", "data-head"]});
})();
</script>"""

# Run by Gradio when the page is loaded: the argument of restore(), and the script that runs after it.
ADDRESS = "() => [window.promptlora.address]"
RERUN = """() => {
  window.promptlora.restored = true;
  if (new URLSearchParams(window.promptlora.address.slice(1)).get("run")) document.getElementById("go").click();
}"""
