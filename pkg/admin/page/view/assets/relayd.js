// What the page cannot do with HTML alone. Everything works without it.
"use strict";
(() => {
  // Says when what is shown is no longer kept up to date.
  const offline = (on) => {
    const note = document.getElementById("offline");
    if (note) note.hidden = !on;
  };
  document.addEventListener("htmx:error", () => offline(true));
  document.addEventListener("htmx:response:error", () => offline(true));
  document.addEventListener("htmx:after:swap", () => offline(false));

  // <button data-copy="id of what to copy">; its data-copied is said once it is done.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    if (!source) return;
    try {
      await navigator.clipboard.writeText((source.value ?? source.textContent).trim());
      button.textContent = button.dataset.copied || button.textContent;
    } catch {
      getSelection().selectAllChildren(source); // not allowed: at least it is selected
    }
  });

  // <input type="checkbox" data-all="name"> ticks all boxes of that name in its form.
  document.addEventListener("change", (event) => {
    const all = event.target.closest("[data-all]");
    if (!all || !all.form) return;
    for (const box of all.form.querySelectorAll(`input[type=checkbox][name="${all.dataset.all}"]`)) box.checked = all.checked;
  });
})();
