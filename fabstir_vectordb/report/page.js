"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("canvas");
  if (!data || !canvas) return;

  const CATEGORIES = ["#3b82d6", "#e07b1f", "#2f9e62", "#d3455b", "#8d63cf", "#a9761f", "#d65fa8", "#1f9fae", "#7c9a1c",
    "#5560d0"];
  const RAMP = [[44, 105, 176], [54, 172, 162], [222, 178, 60], [214, 68, 46]];
  const OTHER = "#8a94a3";
  const HITS_MAX = 50;
  const NEAR = 22;
  const PAD = 16;
  const count = data.x.length;
  const fields = data.fields;
  const element = id => document.getElementById(id);
  const frame = element("frame"), card = element("card"), legend = element("legend");
  const pen = canvas.getContext("2d");
  const wide = data.x.reduce((most, x) => Math.max(most, x), 1);
  const high = data.y.reduce((most, y) => Math.max(most, y), 1);

  let colors = [], matches = null, marked = -1;
  let zoom = 1, centerX = wide / 2, centerY = high / 2, width = 0, height = 0;

  // ---- values as text

  function text(field, row) {
    const value = field.values[row];
    if (value === null) return "";
    if (field.kind === "time") return moment(value);
    return String(value);
  }

  function moment(seconds) {
    const when = new Date(seconds * 1000);
    return isNaN(when) ? String(seconds) : when.toISOString().replace("T", " ").replace(/(:00)?\.000Z$/, "");
  }

  // ---- colours

  function ramp(share) {
    const place = share * (RAMP.length - 1), at = Math.min(Math.floor(place), RAMP.length - 2);
    const mixed = RAMP[at].map((low, i) => Math.round(low + (RAMP[at + 1][i] - low) * (place - at)));
    return `rgb(${mixed.join(",")})`;
  }

  function entry(color, label) {
    const span = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = color;
    span.append(dot, label);
    return span;
  }

  function cut(label, most) {
    return label.length > most ? label.slice(0, most - 1) + "…" : label;
  }

  function paint(field) {
    legend.replaceChildren();
    colors = new Array(count).fill(OTHER);
    if (!field) {
      colors.fill(CATEGORIES[0]);
      return;
    }
    const distinct = new Map();
    for (const value of field.values) if (value !== null) distinct.set(value, (distinct.get(value) || 0) + 1);
    const missing = field.values.reduce((sum, value) => sum + (value === null), 0);
    if (field.kind !== "text" && distinct.size > CATEGORIES.length) {
      let low = Infinity, most = -Infinity;
      for (const value of distinct.keys()) { low = Math.min(low, value); most = Math.max(most, value); }
      field.values.forEach((value, row) => { if (value !== null) colors[row] = ramp((value - low) / (most - low)); });
      const bar = document.createElement("canvas");
      bar.width = 128; bar.height = 1;
      const stripes = bar.getContext("2d");
      for (let x = 0; x < 128; x++) { stripes.fillStyle = ramp(x / 127); stripes.fillRect(x, 0, 1, 1); }
      const span = document.createElement("span");
      const name = value => field.kind === "time" ? moment(value).slice(0, 10) : String(Number(value.toPrecision(6)));
      span.append(name(low), bar, name(most));
      legend.append(span);
    } else {
      const kinds = [...distinct].sort((one, other) => other[1] - one[1]);
      const shown = kinds.length > CATEGORIES.length ? kinds.slice(0, CATEGORIES.length - 1) : kinds;
      const color = new Map(shown.map(([value], i) => [value, CATEGORIES[i]]));
      field.values.forEach((value, row) => { if (color.has(value)) colors[row] = color.get(value); });
      for (const [value, rows] of shown) {
        const label = field.kind === "time" ? moment(value) : String(value);
        legend.append(entry(color.get(value), `${cut(label, 40)} (${rows.toLocaleString("en")})`));
      }
      const rest = kinds.length - shown.length;
      if (rest) legend.append(entry(OTHER, `${rest.toLocaleString("en")} other values`));
    }
    if (missing) legend.append(entry(OTHER, `no value (${missing.toLocaleString("en")})`));
  }

  // ---- drawing

  function scale() {
    return zoom * Math.min((width - 2 * PAD) / wide, (height - 2 * PAD) / high);
  }

  function place(row) {
    const unit = scale();
    return [(data.x[row] - centerX) * unit + width / 2, height / 2 - (data.y[row] - centerY) * unit];
  }

  function draw() {
    const dense = window.devicePixelRatio || 1;
    width = canvas.clientWidth; height = canvas.clientHeight;
    canvas.width = Math.round(width * dense); canvas.height = Math.round(height * dense);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    const faint = getComputedStyle(document.documentElement).getPropertyValue("--dim").trim();
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    const size = Math.max(1.6, Math.min(4.5, Math.sqrt(width * height / count) / 6)) * Math.min(2, Math.sqrt(zoom));
    const dots = (rows, alpha, radius, color) => {
      pen.globalAlpha = alpha;
      for (const row of rows) {
        const [x, y] = place(row);
        if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
        pen.fillStyle = color || colors[row];
        pen.beginPath();
        pen.arc(x, y, radius, 0, 2 * Math.PI);
        pen.fill();
      }
    };
    const all = [...Array(count).keys()];
    if (matches) {
      dots(all.filter(row => !matches.has(row)), .7, size * .8, faint);
      dots(matches, 1, size * 1.3);
    } else {
      dots(all, .75, size);
    }
    pen.globalAlpha = 1;
    if (marked >= 0) {
      const [x, y] = place(marked);
      dots([marked], 1, size * 1.4);
      pen.strokeStyle = ink; pen.lineWidth = 2;
      pen.beginPath(); pen.arc(x, y, size * 1.4 + 2, 0, 2 * Math.PI); pen.stroke();
    }
    canvas.classList.toggle("zoomed", zoom > 1);
  }

  let due = false;
  function redraw() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  }

  // ---- the card of a row

  function nearest(x, y) {
    let best = -1, distance = NEAR * NEAR;
    for (let row = 0; row < count; row++) {
      if (matches && !matches.has(row)) continue;
      const [px, py] = place(row), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < distance) { distance = d; best = row; }
    }
    return best;
  }

  function show(row) {
    marked = row;
    if (row < 0 || !fields.length) { card.hidden = true; redraw(); return; }
    const list = document.createElement("dl");
    list.style.margin = 0;
    for (const field of fields) {
      const name = document.createElement("dt"), value = document.createElement("dd");
      name.textContent = field.name;
      value.textContent = text(field, row) || "—";
      list.append(name, value);
    }
    card.replaceChildren(list);
    card.hidden = false;
    const [x, y] = place(row);
    const left = x + 14 + card.offsetWidth > width ? x - 14 - card.offsetWidth : x + 14;
    const top = y + 14 + card.offsetHeight > height ? y - 14 - card.offsetHeight : y + 14;
    card.style.left = `${Math.max(4, Math.min(left, width - card.offsetWidth - 4))}px`;
    card.style.top = `${Math.max(4, Math.min(top, height - card.offsetHeight - 4))}px`;
    redraw();
  }

  // ---- search

  function search(wanted) {
    const hits = element("hits"), found = element("found");
    hits.replaceChildren();
    wanted = wanted.trim().toLowerCase();
    matches = null;
    show(-1);
    found.textContent = "";
    if (!wanted) return;
    matches = new Set();
    for (let row = 0; row < count; row++)
      if (fields.some(field => text(field, row).toLowerCase().includes(wanted))) matches.add(row);
    const first = [...matches].slice(0, HITS_MAX);
    const more = matches.size > first.length ? `, the first ${first.length} below` : "";
    found.textContent = `${matches.size.toLocaleString("en")} of ${count.toLocaleString("en")} rows drawn${more}`;
    for (const row of first) {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.textContent = cut(fields.map(field => text(field, row)).filter(Boolean).join(" · "), 200);
      button.addEventListener("click", () => {
        [centerX, centerY] = zoom > 1 ? [data.x[row], data.y[row]] : [centerX, centerY];
        show(row);
        frame.scrollIntoView({block: "nearest"});
      });
      item.append(button);
      hits.append(item);
    }
    redraw();
  }

  // ---- moving about

  function zoomBy(factor, x = width / 2, y = height / 2) {
    const before = scale(), old = zoom;
    zoom = Math.max(1, Math.min(64, zoom * factor));
    if (zoom === old) return;
    const after = scale();
    centerX += (x - width / 2) * (1 / before - 1 / after);
    centerY -= (y - height / 2) * (1 / before - 1 / after);
    if (zoom === 1) { centerX = wide / 2; centerY = high / 2; }
    show(-1);
  }

  let held = null;
  canvas.addEventListener("pointerdown", event => {
    if (zoom > 1) { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); }
    show(nearest(event.offsetX, event.offsetY));
  });
  canvas.addEventListener("pointermove", event => {
    if (held) {
      const unit = scale();
      centerX -= (event.clientX - held[0]) / unit;
      centerY += (event.clientY - held[1]) / unit;
      held = [event.clientX, event.clientY];
      show(-1);
    } else {
      const row = nearest(event.offsetX, event.offsetY);
      if (row !== marked) show(row);
    }
  });
  for (const ended of ["pointerup", "pointercancel"]) canvas.addEventListener(ended, () => { held = null; });
  canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse" && !held) show(-1); });
  canvas.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return; // the wheel alone scrolls the page
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
  }, {passive: false});
  element("closer").addEventListener("click", () => zoomBy(1.6));
  element("wider").addEventListener("click", () => zoomBy(1 / 1.6));
  element("reset").addEventListener("click", () => zoomBy(1 / 64));

  // ---- begin

  if (fields.length) {
    const color = element("color");
    fields.forEach((field, i) => color.append(new Option(field.name, String(i))));
    color.addEventListener("change", () => { paint(fields[Number(color.value)]); redraw(); });
    element("color-control").hidden = element("search-control").hidden = false;
    let timer = 0;
    element("search").addEventListener("input", event => {
      clearTimeout(timer);
      timer = setTimeout(() => search(event.target.value), 120);
    });
  }
  paint(fields[0]);
  window.addEventListener("resize", () => { if (canvas.clientWidth === width) redraw(); else show(-1); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  draw();
})();
