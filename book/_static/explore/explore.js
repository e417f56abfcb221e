/* What the explorables share: controls, a picture, a line that says the state.

   A chapter's module exports `explorables`: a function each, by the name of its figure. It is given a
   Board, makes its controls on it, and returns a function that draws: that one is called after each
   input and gives { height, picture, said }. Pictures are 480 units wide, as the figures of the book
   are. Nothing moves by itself. A plain script, not a module, so that pages also work from a disk. */
const explore = (() => {
  "use strict";

  const WIDTH = 480;
  const REACH = 26; // how near to a grip a finger must come

  /** A number as the page writes it, with a minus sign and no minus zero. */
  const number = (x, digits = 2) => {
    if (Math.abs(x) === Infinity) return x < 0 ? "−∞" : "∞";
    const written = x.toFixed(digits);
    return Number(written) === 0 ? written.replace("-", "") : written.replace("-", "−");
  };
  const list = (names, nothing = "nothing") =>
    names.length < 2 ? names[0] ?? nothing : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
  const span = (low, high, count) =>
    Array.from({ length: count }, (_, k) => low + ((high - low) * k) / (count - 1));

  // Tenths of a unit: finer differences nobody sees, and stored pictures would show them.
  const at = (v) => Math.round(v * 10) / 10 || 0;
  const tag = (name, attributes, inside = "") =>
    `<${name}${Object.entries(attributes).map(([k, v]) => ` ${k}="${typeof v === "number" ? at(v) : v}"`).join("")}>${inside}</${name}>`;

  const text = (x, y, words, { anchor = "middle", look = "" } = {}) =>
    tag("text", { x, y, class: `t-${anchor} ${look}`.trim() }, words);
  const line = (x1, y1, x2, y2, look = "") => tag("line", { x1, y1, x2, y2, class: `line ${look}`.trim() });
  const box = (x, y, width, height, look = "") =>
    tag("rect", { x: width < 0 ? x + width : x, y, width: Math.abs(width), height, class: `box ${look}`.trim() });
  const disc = (x, y, r, look = "") => tag("circle", { cx: x, cy: y, r, class: `box ${look}`.trim() });
  const square = (x, y, r, look = "") => box(x - r, y - r, 2 * r, 2 * r, look);
  const path = (points, look = "") =>
    tag("path", { d: points.map(([x, y], k) => `${k ? "L" : "M"}${at(x)} ${at(y)}`).join(""), class: `line ${look}`.trim() });
  /** An arrow with a head of its own size; nothing where there is no way to go. */
  const arrow = (x1, y1, x2, y2, look = "") => {
    const far = Math.hypot(x2 - x1, y2 - y1);
    if (far < 1) return "";
    const [dx, dy] = [(x2 - x1) / far, (y2 - y1) / far];
    const head = Math.min(7, far);
    const [bx, by] = [x2 - dx * head, y2 - dy * head];
    const wing = (side) => `${at(bx - side * dy * head * 0.6)} ${at(by + side * dx * head * 0.6)}`;
    return (
      line(x1, y1, bx, by, look) +
      tag("path", { d: `M${at(x2)} ${at(y2)}L${wing(1)}L${wing(-1)}Z`, class: `box ${look}`.trim() })
    );
  };

  /** Two axes in a box: X and Y turn values into places, `curve` draws and cuts at the box. */
  const plot = ({ x, y, left = 40, top = 12, width = 424, height = 160, xticks = [], yticks = [], xlabel = "", ylabel = "", title = "" }) => {
    const X = (v) => left + ((v - x[0]) / (x[1] - x[0])) * width;
    const Y = (v) => top + height - ((v - y[0]) / (y[1] - y[0])) * height;
    const named = (tick) => (Array.isArray(tick) ? tick : [tick, number(tick, 0)]);
    const frame =
      line(left, top + height, left + width, top + height, "axis") +
      line(left, top, left, top + height, "axis") +
      xticks.map(named).map(([v, name]) => line(X(v), top + height, X(v), top + height + 4, "axis") + text(X(v), top + height + 17, name, { look: "small" })).join("") +
      yticks.map(named).map(([v, name]) => line(left - 4, Y(v), left, Y(v), "axis") + text(left - 7, Y(v) + 4, name, { anchor: "end", look: "small" })).join("") +
      (xlabel && text(left + width, top + height + (xticks.length ? 32 : 17), xlabel, { anchor: "end", look: "small" })) +
      (ylabel && text(left + 6, top + 4, ylabel, { anchor: "start", look: "small halo" })) +
      (title && text(left, top - 8, title, { anchor: "start" }));
    const cut = (inside) =>
      tag("svg", { x: left, y: top - 2, width, height: height + 4, viewBox: `${left} ${top - 2} ${width} ${height + 4}` }, inside);
    const curve = (points, look) =>
      cut(path(points.map(([a, b]) => [X(a), clamp(Y(b), top - 999, top + height + 999)]), look));
    return { X, Y, frame, cut, curve, toX: (px) => x[0] + ((px - left) / width) * (x[1] - x[0]), toY: (py) => y[0] + ((top + height - py) / height) * (y[1] - y[0]) };
  };

  class Board {
    constructor(figure, make) {
      this.name = figure.id;
      this.controls = [];
      this.grips = new Map();
      this.place = figure.querySelector(".explore-board");
      this.said = figure.querySelector(".explore-said");
      this.picture = document.createElement("div");
      this.picture.className = "explore-picture";
      this.panel = document.createElement("div");
      this.panel.className = "explore-controls";
      this.draw = make(this);
      this.button("Start again", () => this.controls.forEach((control) => control.reset()));
      this.panel.addEventListener("input", () => this.update());
      this.place.replaceChildren(this.picture, this.panel);
      this.drag();
      this.update();
    }

    add(control) {
      this.controls.push(control);
      return control;
    }

    row(name = "explore-row") {
      const row = document.createElement("div");
      row.className = name;
      this.panel.append(row);
      return row;
    }

    /** A slider; `show` says its value in words. A value that was given is kept as it is, between the
        steps of the slider, until somebody moves it. */
    range(label, { min, max, step = 0.01, value, show = number }) {
      const id = `${this.name}-${this.controls.length}`;
      const row = this.row();
      row.innerHTML = `<label for="${id}">${label}</label><input type="range" id="${id}" min="${min}" max="${max}" step="${step}" value="${value}"><output for="${id}"></output>`;
      const [input, output] = [row.querySelector("input"), row.querySelector("output")];
      const given = { exact: value, shown: input.value };
      return this.add({
        row,
        get value() { return input.value === given.shown ? given.exact : Number(input.value); },
        set value(v) {
          input.value = v;
          given.exact = clamp(v, min, max);
          given.shown = input.value;
        },
        reset() { this.value = value; },
        tell() {
          output.textContent = show(this.value);
          input.setAttribute("aria-valuetext", output.textContent);
        },
      });
    }

    /** A box to tick, in a row of its own or in that of another control; `name` says it in full. */
    check(label, on, { row = this.row("explore-row explore-free"), name = label } = {}) {
      const holder = document.createElement("label");
      holder.className = "explore-check";
      holder.innerHTML = `<input type="checkbox" aria-label="${name}"${on ? " checked" : ""}><span>${label}</span>`;
      const input = holder.firstChild;
      row.append(holder);
      return this.add({
        get value() { return input.checked; },
        set value(v) { input.checked = v; },
        reset() { input.checked = on; },
        tell() {},
      });
    }

    /** One of several. */
    choice(label, names, value = 0) {
      const row = document.createElement("fieldset");
      row.className = "explore-choice";
      const group = `${this.name}-${this.controls.length}`;
      row.innerHTML = `<legend>${label}</legend>${names.map((name, k) => `<label class="explore-check"><input type="radio" name="${group}" value="${k}"${k === value ? " checked" : ""}><span>${name}</span></label>`).join("")}`;
      this.panel.append(row);
      const inputs = [...row.querySelectorAll("input")];
      return this.add({
        get value() { return inputs.findIndex((input) => input.checked); },
        set value(v) { inputs[v].checked = true; },
        reset() { inputs[value].checked = true; },
        tell() {},
      });
    }

    button(label, press) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => {
        press();
        this.update();
      });
      this.buttons ??= this.row("explore-buttons");
      this.buttons.append(button);
      this.panel.append(this.buttons); // below all other controls
    }

    /** A place of the picture that can be dragged; `moved` is told where to, in units, and whether
        it has just been pressed. A grip keeps its key from drawing to drawing. */
    grip(key, x, y, moved, r = 20) {
      this.grips.set(key, { x, y, moved });
      return tag("circle", { cx: x, cy: y, r, class: "grip" });
    }

    drag() {
      let held = null;
      const where = (event) => {
        const svg = this.picture.querySelector("svg");
        const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        return [x, y];
      };
      const move = (event, pressed = false) => {
        if (held === null) return;
        this.grips.get(held)?.moved(...where(event), pressed);
        this.update();
      };
      this.picture.addEventListener("pointerdown", (event) => {
        const [x, y] = where(event);
        const far = (grip) => Math.hypot(grip.x - x, grip.y - y);
        const [nearest] = [...this.grips].sort(([, a], [, b]) => far(a) - far(b));
        if (!nearest || far(nearest[1]) > REACH) return;
        held = nearest[0];
        this.pressed = event.target.closest(".grip");
        this.picture.setPointerCapture(event.pointerId);
        event.preventDefault();
        move(event, true);
      });
      // A finger on a grip does not scroll the page; elsewhere it does.
      this.picture.addEventListener("touchstart", (event) => { if (held !== null) event.preventDefault(); }, { passive: false });
      this.picture.addEventListener("pointermove", (event) => move(event));
      for (const end of ["pointerup", "pointercancel"]) this.picture.addEventListener(end, () => { held = this.pressed = null; });
    }

    update() {
      this.grips = new Map();
      const { height, picture, said } = this.draw();
      if (this.pressed) {
        // What a finger lies on must stay: without it, no more is heard of the finger.
        for (const old of [...this.pressed.parentNode.childNodes]) if (old !== this.pressed) old.remove();
        this.pressed.insertAdjacentHTML("beforebegin", picture);
      } else this.picture.innerHTML = tag("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${WIDTH} ${height}`, "aria-hidden": "true" }, picture);
      if (this.said.textContent !== said) this.said.textContent = said;
      this.controls.forEach((control) => control.tell());
    }
  }

  const show = (explorables) => {
    for (const figure of document.querySelectorAll("figure[data-explore]")) {
      const make = explorables[figure.dataset.explore];
      if (make) new Board(figure, make);
    }
  };

  return { show, number, list, clamp, span, text, line, box, disc, square, path, arrow, plot };
})();
