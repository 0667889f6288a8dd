"use strict";
(() => {
  const tip = document.getElementById("tip");
  let shown = null, top = 0;  // the element that the tip is about, and where it was on the screen
  const hideTip = () => {
    shown?.classList.remove("at");
    shown = null;
    tip.hidden = true;
  };
  const showTip = (node, ...content) => {
    hideTip();
    shown = node;
    node.classList.add("at");
    tip.replaceChildren(...content);
    tip.hidden = false;
    const place = node.getClientRects()[0], size = tip.getBoundingClientRect();
    top = place.top;
    const room = document.documentElement.clientWidth - size.width - 8;
    tip.style.left = Math.max(8, Math.min(place.left, room)) + "px";
    const below = place.bottom + 8;
    tip.style.top = (below + size.height < innerHeight ? below : Math.max(8, place.top - size.height - 8)) + "px";
  };
  const follow = () => shown && Math.abs(shown.getClientRects()[0].top - top) > 4 && hideTip();
  addEventListener("scroll", follow, { passive: true, capture: true });
  addEventListener("keydown", (e) => e.key === "Escape" && hideTip());
  // Safari on a phone gives links no focus that they could lose.
  addEventListener("click", (e) => e.target.closest(".term, .text") || hideTip());

  // Terms: a pointer or the keyboard shows the words of the glossary, a click or Enter goes there; a finger
  // only shows them.
  for (const link of document.querySelectorAll("a.term")) {
    const [title, text] = document.querySelector(link.hash).children;
    const show = () => {
      const [strong, words] = [document.createElement("strong"), document.createElement("div")];
      [strong.textContent, words.textContent] = [title.textContent, text.textContent];
      showTip(link, strong, words);
    };
    link.addEventListener("pointerenter", (e) => e.pointerType === "mouse" && show());
    link.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && hideTip());
    link.addEventListener("focus", () => link.matches(":focus-visible") && show());
    link.addEventListener("blur", hideTip);
    link.addEventListener("click", (e) => {
      if (e.pointerType !== "touch" && e.pointerType !== "pen") return hideTip();
      e.preventDefault();
      show();
    });
  }

  // The passages of text.
  const found = document.getElementById("data");
  if (!found) return;
  const data = JSON.parse(found.textContent);
  const count = data.ids.length;
  const cells = data.cells.list;
  const values = Uint8Array.from(atob(data.cells.values), (c) => c.charCodeAt(0));
  let cell = 0;

  const element = (name, text, kind) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
  const percent = (p) => (p >= 0.1 ? Math.round(100 * p) : (100 * p).toPrecision(2)) + " %";
  const spaceName = (display) => (display === " " ? "space" : display);

  // The passage as one <span> per symbol; a symbol that ends a line is followed by the line's end.
  const writePassage = (into) => {
    const spans = data.ids.map((id, i) => {
      const [display, , kind, ends] = data.symbols[id];
      const character = data.completed[i];
      const span = character ? element("span", character) : element("span", display, kind);
      span.dataset.i = i;
      into.append(span);
      if (ends) into.append("\n");
      return span;
    });
    return spans;
  };

  const symbolName = (i) => {
    const [display, name] = data.symbols[data.ids[i]];
    const box = document.createDocumentFragment();
    const character = data.completed[i];
    const title = element("p");
    title.append(element("strong", spaceName(character || display)), " ", character ? name + ", completes " + character : name);
    box.append(title);
    return box;
  };
  const guesses = (i) => {
    const box = symbolName(i);
    if (data.bits[i] === null) {
      box.append(element("p", "first symbol: not predicted"));
      return box;
    }
    const chance = 2 ** -data.bits[i];
    box.append(element("p", data.bits[i].toFixed(2) + " bits: probability " + percent(chance)));
    const list = element("ol");
    data.guesses[i].forEach((id, k) => {
      const line = element("li", undefined, id === data.ids[i] ? "true" : "");
      const bar = element("i");
      bar.style.width = Math.max(1, 100 * data.chances[i][k]) + "%";
      line.append(element("code", spaceName(data.symbols[id][0])), element("b", percent(data.chances[i][k])), bar);
      list.append(line);
    });
    box.append(list);
    return box;
  };
  const level = (i) => values[cell * count + i] / 254;
  const valueOf = (i) => {
    const [layer, unit, low, high] = cells[cell];
    const box = symbolName(i);
    const v = level(i);
    const sign = v === 0 ? "≤ " : v === 1 ? "≥ " : "";
    box.append(element("p", `layer ${layer + 1}, cell ${unit}: ${sign}${signed(low + v * (high - low))}`));
    return box;
  };

  // Shows a tip for the symbol under the pointer, tapped, or reached by keyboard; `content(i)` fills the tip.
  const explore = (box, spans, content) => {
    let at = 0;
    const show = (i) => showTip(spans[at = i], content(i));
    const onNextLine = (down) => {
      const from = spans[at].getClientRects()[0];
      let best = at, line = null;
      for (let i = at + (down ? 1 : -1); i >= 0 && i < count; i += down ? 1 : -1) {
        const r = spans[i].getClientRects()[0];
        if (Math.abs(r.top - from.top) < 4) continue;
        if (line !== null && Math.abs(r.top - line) >= 4) break;
        line = r.top;
        if (best === at || Math.abs(r.left - from.left) < Math.abs(spans[best].getClientRects()[0].left - from.left)) best = i;
      }
      return best;
    };
    box.addEventListener("pointerover", (e) => e.target.dataset.i && show(+e.target.dataset.i));
    box.addEventListener("click", (e) => e.target.dataset.i && show(+e.target.dataset.i));
    box.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && hideTip());
    box.addEventListener("focus", () => box.matches(":focus-visible") && show(at));
    box.addEventListener("blur", hideTip);
    box.addEventListener("keydown", (e) => {
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: count - 1 }[e.key]
        ?? (e.key === "ArrowUp" || e.key === "ArrowDown" ? onNextLine(e.key === "ArrowDown") : undefined);
      if (next === undefined || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      const reached = Math.max(0, Math.min(count - 1, next));
      spans[reached].scrollIntoView({ block: "nearest", behavior: "instant" });
      show(reached);
    });
  };

  const surprise = document.getElementById("surprise-text");
  const surprised = writePassage(surprise);
  surprised.forEach((span, i) => {
    const share = Math.min((data.bits[i] || 0) / 8, 1);
    span.style.backgroundColor = `rgb(var(--surprise) / calc(var(--depth) * ${share.toFixed(3)}))`;
  });
  explore(surprise, surprised, guesses);

  const heat = document.getElementById("cell-text");
  const heated = writePassage(heat);
  const select = document.getElementById("cell");
  const label = ([layer, unit, , , fact, score], withLayer) =>
    `cell ${unit}` + (withLayer && layers > 1 ? ` of layer ${layer + 1}` : "") + (fact ? `: ${fact} ${signed(score)}` : "");
  const layers = 1 + Math.max(...cells.map((c) => c[0]));
  const group = (title, places, withLayer) => {
    const node = element("optgroup");
    node.label = title;
    places.forEach((place) => {
      const option = element("option", label(cells[place], withLayer));
      option.value = place;
      node.append(option);
    });
    select.append(node);
  };
  const order = cells.map((_, i) => i);
  const clear = order.filter((i) => cells[i][4]).slice(0, 24);
  if (clear.length) group("follow a fact most closely", clear, true);
  for (let layer = 0; layer < layers; layer++) {
    const own = order.filter((i) => cells[i][0] === layer).sort((a, b) => cells[a][1] - cells[b][1]);
    group(`layer ${layer + 1}, by number`, own, false);
  }
  const buttons = [...document.querySelectorAll("button.cell")];
  const choose = (place) => {
    cell = place;
    const [, , low, high, fact, score] = cells[cell];
    heated.forEach((span, i) => {
      const v = 2 * level(i) - 1;
      span.style.backgroundColor = `rgb(var(--${v < 0 ? "low" : "high"}) / calc(var(--depth) * ${Math.abs(v).toFixed(3)}))`;
    });
    document.getElementById("low").textContent = signed(low);
    document.getElementById("high").textContent = signed(high);
    document.getElementById("match").textContent = fact ? `follows “${fact}”: ${signed(score)}` : "follows none of the facts";
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(+b.dataset.cell === cell)));
  };
  select.addEventListener("change", () => choose(+select.value));
  buttons.forEach((b) => b.addEventListener("click", () => {
    select.value = b.dataset.cell;
    choose(+b.dataset.cell);
  }));
  const move = (by) => {
    const options = select.options.length;
    select.selectedIndex = (select.selectedIndex + by + options) % options;
    choose(+select.value);
  };
  document.getElementById("before").addEventListener("click", () => move(-1));
  document.getElementById("after").addEventListener("click", () => move(1));
  explore(heat, heated, valueOf);
  const first = buttons.length ? +buttons[0].dataset.cell : +select.value;
  select.value = first;
  choose(first);
})();
