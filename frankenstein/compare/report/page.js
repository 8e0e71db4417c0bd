"use strict";
/* What the reader can do: choose optimizers and axes, sort tables, go from page to page, switch to dark. */
(() => {
  const {all, one, looks, state, redraw, focus, inTheme} = charts;
  const site = document.title;

  // Optimizers: shown, hidden, in focus -------------------------------------------------------------------------------

  const boxes = all(".legend input");

  /* Check the boxes of the optimizers that the rule names, if there is one, and show those that are checked. */
  function show(rule) {
    if (rule) boxes.forEach(box => { box.checked = rule(box.value); });
    state.shown = new Set(boxes.filter(box => box.checked).map(box => box.value));
    focus(state.shown.has(state.focus) ? state.focus : "");
    redraw();
  }
  const rules = {
    all: () => true,
    none: () => false,
    strong: label => looks.find(look => look.label === label).is_strong,
  };
  boxes.forEach(box => box.addEventListener("change", () => show()));
  all("[data-show]").forEach(button => button.addEventListener("click", () => show(rules[button.dataset.show])));

  boxes.forEach(box => {
    const item = box.closest("li");
    for (const event of ["mouseenter", "focusin"]) {
      item.addEventListener(event, () => focus(box.checked ? box.value : ""));
    }
    for (const event of ["mouseleave", "focusout"]) item.addEventListener(event, () => focus(""));
  });

  // Controls: every section has its own, all say the same -------------------------------------------------------------

  all("[data-control]").forEach(input => input.addEventListener("change", () => {
    state.controls[input.dataset.control] = input.value;
    for (const twin of all(`[data-control="${input.dataset.control}"]`)) twin.checked = twin.value === input.value;
    redraw();
  }));

  // Tables: a click on a heading sorts --------------------------------------------------------------------------------

  function valueOf(row, column) {
    const cell = row.cells[column];
    const value = Number(cell.dataset.value ?? "nan");
    return Number.isNaN(value) ? cell.dataset.value === "inf" ? Infinity : null : value;
  }

  function sort(heading) {
    const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
    const isDown = heading.getAttribute("aria-sort") === "ascending";
    all("th", table.tHead).forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const rows = [...body.rows], isNumeric = rows.some(row => valueOf(row, column) !== null);
    const sign = isDown ? -1 : 1, text = row => row.cells[column].textContent;
    rows.sort((a, b) => {
      if (!isNumeric) return sign * text(a).localeCompare(text(b), "en", {numeric: true});
      const [v, w] = [valueOf(a, column), valueOf(b, column)];
      if (v === null || w === null) return (v === null) - (w === null);  // what is missing stays below
      return v === w ? 0 : sign * (v - w);
    });
    body.append(...rows);
  }
  all(".sort").forEach(button => button.addEventListener("click", () => sort(button.closest("th"))));

  // Pages: #/ and #/problem/NAME are pages, any other anchor is a place on one ----------------------------------------

  function route() {
    const raw = location.hash.slice(1) || "/";
    const target = document.getElementById(raw);
    const page = target?.closest(".view") || one(".view:not([hidden])") || one(".view");
    for (const view of all(".view")) view.hidden = view !== page;
    for (const link of all(".side nav a")) {
      if (link.hash === `#${page.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const name = page.id === "/" ? "" : `${one("h1", page).textContent} \u2013 `;
    document.title = `${name}${site}`;
    if (target && target !== page) target.scrollIntoView();
    else if (target) scrollTo(0, 0);
  }
  addEventListener("hashchange", () => {
    route();
    one(".view:not([hidden]) h1").focus({preventScroll: true});
  });
  one(".skip").addEventListener("click", event => {
    event.preventDefault();
    one("#main").focus();
    one("#main").scrollIntoView();
  });

  // Light and dark ----------------------------------------------------------------------------------------------------

  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = one("#theme");

  function theme(isDark) {
    state.isDark = isDark;
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    button.setAttribute("aria-pressed", isDark);
    for (const line of all("[data-colour]")) line.setAttribute("stroke", inTheme(line.dataset.colour));
    redraw();
  }
  button.addEventListener("click", () => theme(!state.isDark));
  system.addEventListener("change", event => theme(event.matches));

  const narrow = matchMedia("(max-width: 59.99rem)");
  if (narrow.matches) all(".side details").forEach(details => { details.open = false; });
  if (looks.length > 12 && narrow.matches) one(".legend").open = false;
  route();
  theme(system.matches);
})();
