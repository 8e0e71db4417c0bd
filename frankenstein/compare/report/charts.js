"use strict";
/* The page draws its charts from Vega-Lite specifications that stand in it as data.

   A specification says in `usermeta` what the page may change of it:
     axes         "x", "y", "xy": axes that the controls change
     value        the channel of these that shows scores
     views        what can be shown there: [{quantity, title, can_log}], the default first
     padding      pixels that its axis keeps free for the marks
     panel        width of a panel, of as many beside each other as there is room for
     shows_all    the chart is made of all optimizers, also of those not shown
     cells        [n, least]: n columns of a matrix, none narrower than that */
const charts = (() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const looks = JSON.parse(one("#looks").textContent);
  const state = {
    shown: new Set(looks.map(look => look.label)),
    focus: "",
    controls: {
      setting: "tuned", quantity: "score", accuracy: "error", scale_y: "log",
      x_axis: "step", scale_x: "linear", band: "quartiles",
    },
    isDark: false,
    isPrinting: false,
  };

  // Data --------------------------------------------------------------------------------------------------------------

  const parts = new Map();

  function chartOf(plot) {
    const name = plot.dataset.part;
    if (!parts.has(name)) {
      const script = all("script[data-name]").find(element => element.dataset.name === name);
      parts.set(name, JSON.parse(script.textContent));
    }
    return parts.get(name)[plot.dataset.chart];
  }

  // Specifications ----------------------------------------------------------------------------------------------------

  const DARK = {
    "#1b1b1b": "#f0f0f0", "#0072b2": "#3f9bdc", "#56b4e9": "#a4dbff", "#c4c4c4": "#565b62", "#c9c9c9": "#565b62",
    "white": "#15181c", "#e08a4f": "#9c5220", "#f4f4f4": "#2a2f36", "#5aa2d4": "#2a6a9c",
  };

  const inTheme = colour => (state.isDark && !state.isPrinting && DARK[colour]) || colour;

  function themed(spec) {
    if (!state.isDark || state.isPrinting) return spec;
    return JSON.parse(JSON.stringify(spec), (_, value) => (typeof value === "string" ? inTheme(value) : value));
  }

  function config(width) {
    const isDark = state.isDark && !state.isPrinting;
    const [ink, soft, grid, tick] = isDark
      ? ["#e6e6e6", "#b4b7bc", "#2b3036", "#4a4f57"]
      : ["#222", "#55565a", "#e8e8e6", "#c8c8c8"];
    const font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";
    const title = {titleFontSize: 12, titleFontWeight: "normal", titleColor: soft};
    return {
      font,
      background: "transparent",
      padding: {left: 2, top: 4, right: 14, bottom: 2},
      view: {stroke: null},
      mark: {aria: false},
      axis: {
        ...title, aria: false, labelFontSize: 12, labelColor: soft, gridColor: grid, tickColor: tick, domain: false,
        tickSize: 4, labelPadding: 4, labelLimit: width < 380 ? 110 : 190, titlePadding: 8, tickCount: 5,
      },
      legend: {...title, aria: false, labelFontSize: 12, labelColor: soft},
      header: {labelFontSize: 12, labelColor: ink},
      text: {color: ink, fontSize: 12},
    };
  }

  /* Return the specification as the controls, the width and the theme want it. */
  function adapted(chart, width, height) {
    const {controls} = state;
    const spec = themed(structuredClone(chart.spec));
    const meta = spec.usermeta || {};
    const set = (name, value) => {
      const parameter = (spec.params || []).find(candidate => candidate.name === name);
      if (parameter) parameter.value = value;
    };
    withoutLegends(spec);
    set("focus", state.focus);
    if (meta.views) {
      const wanted = controls.quantity === "train_loss" ? "train_loss" : controls.accuracy;
      const showing = quantity => meta.views.find(candidate => candidate.quantity === quantity);
      const view = showing(wanted) || showing("score");
      const isLog = controls.scale_y === "log" && view.can_log;
      const channel = (spec.spec || spec).encoding[meta.value];
      const kind = isLog ? {type: "log", nice: false} : {type: "linear", zero: false, nice: true};
      channel.scale = {...kind, padding: meta.padding || 0};
      channel.title = meta.panel ? `validation ${view.quantity}` : view.title;
      set("quantity", view.quantity);
      set("is_log", isLog);
      set("setting", controls.setting);
    }
    if (meta.axes === "xy") {
      const isLog = controls.scale_x === "log";
      spec.encoding.x.scale = {type: isLog ? "log" : "linear", nice: false};
      spec.encoding.x.title = controls.x_axis === "step" ? "step" : "seconds of training";
      set("x_axis", controls.x_axis);
      set("is_log_x", isLog);
      set("band", controls.band);
    }
    const isShown = label => !label || meta.shows_all || state.shown.has(label);
    const shown = chart.rows.filter(row => isShown(row.optimizer) && isShown(row.other));
    const rows = shown.map(row => ({...row}));  // Vega writes into what it is given
    fitted(spec, meta, width, new Set(rows.map(row => row.optimizer)).size);
    if (height) spec.height = height;
    spec.data = {values: rows};
    return spec;
  }

  function fitted(spec, meta, width, n_lines) {
    if (meta.panel) {
      const least = state.isPrinting ? 115 : meta.panel;
      const n = Math.max(1, Math.floor((width - 10) / (least + 40)));
      spec.columns = n;
      spec.spec.width = Math.floor((width - 10) / n) - 44;
    } else if (meta.cells) {
      const [n, least] = meta.cells;
      spec.width = {step: Math.max(least, Math.min(46, (width - (width < 480 ? 125 : 275)) / n))};
    } else {
      spec.width = width;
      if (spec.height?.step) spec.height = spec.height.step * Math.max(1, n_lines);
      spec.autosize = {type: "fit-x", contains: "padding"};
    }
  }

  function withoutLegends(node) {
    if (node === null || typeof node !== "object") return;
    for (const channel of ["color", "strokeDash"]) {
      if (node[channel]?.field === "optimizer") node[channel].legend = null;
    }
    Object.values(node).forEach(withoutLegends);
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  const plots = all(".plot");
  const views = new Map();  // plot -> Vega's view
  const near = new Set();  // plots on the screen, or close to it
  const stale = new Set(plots);
  let isAtWork = false;

  const OPTIONS = {
    mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, hover: false, logLevel: 1,
    tooltip: () => {},  // the page has its own
  };

  async function draw(plot) {
    stale.delete(plot);
    const isSmall = plot.dataset.height !== undefined;
    const width = state.isPrinting ? (isSmall ? 320 : 660) : plot.clientWidth;
    const spec = adapted(chartOf(plot), width, Number(plot.dataset.height));
    views.get(plot)?.finalize();
    views.delete(plot);
    plot.dataset.width = width;
    try {
      views.set(plot, (await vegaEmbed(plot, spec, {...OPTIONS, config: config(width)})).view);
    } catch (error) {
      plot.textContent = `This chart cannot be drawn: ${error.message}`;
      console.error(error);
    }
  }

  /* Draw what is stale and near the screen, one chart a frame, so that the page stays alive. */
  async function work() {
    if (isAtWork || state.isPrinting) return;
    isAtWork = true;
    one("#main").setAttribute("aria-busy", "true");
    const isDue = plot => near.has(plot) && stale.has(plot) && plot.clientWidth;
    for (let plot; (plot = plots.find(isDue));) {
      await draw(plot);
      await new Promise(resolve => setTimeout(resolve));
    }
    isAtWork = false;
    one("#main").removeAttribute("aria-busy");
  }

  function redraw() {
    plots.forEach(plot => stale.add(plot));
    work();
  }

  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) entry.isIntersecting ? near.add(entry.target) : near.delete(entry.target);
    work();
  }, {rootMargin: "300px"});
  const measure = new ResizeObserver(entries => {
    for (const {target} of entries) {
      const {clientWidth, dataset} = target;
      if (views.has(target) && clientWidth && Math.abs(clientWidth - dataset.width) > 4) stale.add(target);
    }
    work();
  });
  plots.forEach(plot => { watch.observe(plot); measure.observe(plot); });

  // Printing: every section, every chart, light -----------------------------------------------------------------------

  function print(isPrinting) {
    if (state.isPrinting === isPrinting) return;
    state.isPrinting = isPrinting;
    if (isPrinting) plots.forEach(draw);
    else redraw();
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", event => print(event.matches));

  // Focus: one optimizer stands out in every chart --------------------------------------------------------------------

  function focus(label) {
    if (state.focus === label) return;
    state.focus = label;
    for (const plot of near) {
      const view = views.get(plot);
      if (view && !stale.has(plot) && chartOf(plot).spec.params?.some(({name}) => name === "focus")) {
        view.signal("focus", label).runAsync();
      }
    }
  }
  // Tooltips: of the nearest thing that has one -----------------------------------------------------------------------

  const tip = one("#tip");
  const REACH = 28;  // pixels

  function* things(group, x = 0, y = 0) {
    for (const mark of group.items || []) {
      for (const item of mark.items || []) {
        if (mark.marktype === "group") yield* things(item, x + (item.x || 0), y + (item.y || 0));
        else if (item.tooltip) yield [item, x, y];
      }
    }
  }

  function nearest(view, event, plot) {
    const box = one("svg", plot).getBoundingClientRect();
    const [left, top] = view.origin();
    const [px, py] = [event.clientX - box.left - left, event.clientY - box.top - top];
    let best = null, least = REACH ** 2;
    for (const [item, x, y] of things({items: [view.scenegraph().root]})) {
      const isPoint = item.mark.marktype === "line";
      const {x1, y1, x2, y2} = isPoint ? {x1: item.x, y1: item.y, x2: item.x, y2: item.y} : item.bounds;
      const dx = Math.max(x + x1 - px, 0, px - x - x2), dy = Math.max(y + y1 - py, 0, py - y - y2);
      if (dx * dx + dy * dy < least) [best, least] = [item, dx * dx + dy * dy];
    }
    return best;
  }

  function tell(item, event) {
    tip.hidden = !item;
    if (!item) return;
    const [[, name], ...rest] = Object.entries(item.tooltip);
    const strong = document.createElement("strong"), list = document.createElement("dl");
    strong.textContent = name;
    for (const [key, value] of rest) {
      list.appendChild(document.createElement("dt")).textContent = key;
      list.appendChild(document.createElement("dd")).textContent = value;
    }
    tip.replaceChildren(strong, list);
    const {width, height} = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
  }

  plots.forEach(plot => {
    plot.addEventListener("pointermove", event => {
      const view = views.get(plot);
      if (!view || stale.has(plot)) return;
      const item = nearest(view, event, plot);
      tell(item, event);
      focus(item?.datum.optimizer || "");
    });
    plot.addEventListener("pointerleave", () => { tell(null); focus(""); });
  });

  return {all, one, looks, state, redraw, focus, inTheme};
})();
