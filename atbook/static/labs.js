// Figures that compute in the reader's browser: no server, no module, no fetch, so they also work from file://.
// A page holds <div class="atbook-lab" data-lab="NAME" data-figure="ID"> with its data as JSON inside. The lab takes the
// place of the picture in the figure of that id; without JavaScript the picture stands. In Jupyter, anywidget runs the
// same file. The formulas are those of atbook.attention, atbook.losses and atbook.scores; tests hold them to it.
(function (root) {
  "use strict";

  // ---- the mathematics ---------------------------------------------------------------------------------------------
  var math = {
    // A: C * H * W numbers, channel after channel; the map of H * W numbers
    fSum: function (A, C, p) { return overChannels(A, C, p, function (sum, a) { return sum + a; }); },
    fMax: function (A, C, p) { return overChannels(A, C, p, Math.max); },
    norm: function (Q) { return Math.sqrt(dot(Q, Q)); },
    normalize: function (Q) {
      var n = Math.max(math.norm(Q), 1e-12);
      return Q.map(function (q) { return q / n; });
    },
    squaredLoss: function (Q_S, Q_T) { return sumSquares(math.normalize(Q_S), math.normalize(Q_T)) / Q_S.length; },
    normLoss: function (Q_S, Q_T) { return Math.sqrt(sumSquares(math.normalize(Q_S), math.normalize(Q_T))); },
    // d squaredLoss / d Q_S: what is left of s - t without its part along s, over the length of Q_S
    squaredGradient: function (Q_S, Q_T) {
      var s = math.normalize(Q_S), t = math.normalize(Q_T), c = dot(s, t), scale = 2 / (Q_S.length * math.norm(Q_S));
      return s.map(function (x, i) { return scale * (c * x - t[i]); });
    },
    softmax: function (z, T) {
      var top = Math.max.apply(null, z), e = z.map(function (x) { return Math.exp((x - top) / T); });
      var sum = e.reduce(add, 0);
      return e.map(function (x) { return x / sum; });
    },
    entropy: function (p) { return -p.reduce(function (h, x) { return h + (x > 0 ? x * Math.log(x) : 0); }, 0); },
    divergence: function (p, q) {
      return p.reduce(function (d, x, i) { return d + (x > 0 ? x * Math.log(x / q[i]) : 0); }, 0);
    },
    distillation: function (z_S, z_T, T) { return T * T * math.divergence(math.softmax(z_T, T), math.softmax(z_S, T)); },
    // bilinear, as torch's interpolate with align_corners=False
    enlarge: function (Q, size, to) {
      var at = Array.from({ length: to }, function (_, i) {
        var x = Math.max((i + 0.5) * size / to - 0.5, 0), low = Math.min(Math.floor(x), size - 1);
        return [low, Math.min(low + 1, size - 1), x - low];
      });
      var out = new Array(to * to);
      at.forEach(function (y, i) {
        at.forEach(function (x, j) {
          var above = mix(Q[y[0] * size + x[0]], Q[y[0] * size + x[1]], x[2]);
          out[i * to + j] = mix(above, mix(Q[y[1] * size + x[0]], Q[y[1] * size + x[1]], x[2]), y[2]);
        });
      });
      return out;
    },
    energy: function (Q, mask) { return dot(Q, mask) / Q.reduce(add, 0); },
    pointing: function (Q, mask) { return mask[Q.indexOf(Math.max.apply(null, Q))] === 1; },
  };
  function add(a, b) { return a + b; }
  function dot(a, b) { return a.reduce(function (sum, x, i) { return sum + x * b[i]; }, 0); }
  function sumSquares(a, b) { return a.reduce(function (sum, x, i) { return sum + (x - b[i]) * (x - b[i]); }, 0); }
  function mix(a, b, part) { return a + part * (b - a); }
  function overChannels(A, C, p, join) {
    var places = A.length / C, Q = new Array(places).fill(0);
    for (var c = 0; c < C; c++) {
      for (var i = 0; i < places; i++) { Q[i] = join(Q[i], Math.pow(Math.abs(A[c * places + i]), p)); }
    }
    return Q;
  }

  // ---- small parts of a page ---------------------------------------------------------------------------------------
  var count = 0;
  function el(tag, attributes, children) {
    var made = document.createElement(tag);
    Object.entries(attributes || {}).forEach(function (pair) { made.setAttribute(pair[0], pair[1]); });
    (children || []).forEach(function (child) { made.append(child); });
    return made;
  }
  function svg(tag, attributes, text) {
    var made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes || {}).forEach(function (pair) { made.setAttribute(pair[0], pair[1]); });
    if (text !== undefined) { made.textContent = text; }
    return made;
  }
  function slider(label, min, max, step, value, shown, changed) {
    var id = "lab-" + ++count, input = el("input", { type: "range", id: id, min: min, max: max, step: step, value: value });
    var output = el("output", { for: id });
    function update() {
      output.textContent = shown(+input.value);
      input.setAttribute("aria-valuetext", shown(+input.value));
      changed(+input.value);
    }
    input.addEventListener("input", update);
    return { node: el("div", { class: "lab-control" }, [el("label", { for: id }, [label]), input, output]), start: update };
  }
  function choice(label, names, changed) {
    var id = "lab-" + ++count;
    var select = el("select", { id: id }, names.map(function (name, i) { return el("option", { value: i }, [name]); }));
    select.addEventListener("change", function () { changed(+select.value); });
    return el("div", { class: "lab-control" }, [el("label", { for: id }, [label]), select]);
  }
  function bytes(text) { return Uint8Array.from(atob(text), function (letter) { return letter.charCodeAt(0); }); }
  function digits(x, n) { return Math.abs(x) > 0 && Math.abs(x) < Math.pow(10, -n) ? x.toExponential(1) : x.toFixed(n); }

  // inferno at eleven places
  var INFERNO = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84], [221, 81, 58],
    [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];
  function colour(x) {
    var at = Math.min(Math.max(x, 0), 1) * 10, low = Math.min(Math.floor(at), 9);
    return INFERNO[low].map(function (c, k) { return mix(c, INFERNO[low + 1][k], at - low); });
  }
  function canvas(size, label) { return el("canvas", { width: size, height: size, role: "img", "aria-label": label }); }
  function draw(onto, pixel) {
    var size = onto.width, context = onto.getContext("2d"), image = context.createImageData(size, size);
    for (var i = 0; i < size * size; i++) {
      var rgb = pixel(i);
      for (var k = 0; k < 3; k++) { image.data[4 * i + k] = rgb[k]; }
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }
  function panel(title, node) { return el("div", { class: "lab-panel" }, [el("div", { class: "lab-title" }, [title]), node]); }

  // ---- the labs ----------------------------------------------------------------------------------------------------
  var labs = {};

  // data: images [{title, size, rgb, mask}], networks [{name, groups: [{name, channels, size, scale, values: [one each image]}]}]
  labs.explorer = function (place, data) {
    var now = { image: 0, network: 0, group: 0, mapping: 0, p: 2 };
    var size = data.images[0].size, picture = canvas(size, "the image"), map = canvas(size, "attention map");
    var overlay = canvas(size, "the map over the image"), said = el("p", { class: "lab-said", role: "status" });
    var activations = data.networks.map(function (network) {
      return network.groups.map(function (group) {
        return group.values.map(function (text) { return Array.from(bytes(text), function (v) { return v * group.scale; }); });
      });
    });
    function show() {
      var image = data.images[now.image], group = data.networks[now.network].groups[now.group];
      var rgb = bytes(image.rgb), mask = Array.from(bytes(image.mask)), A = activations[now.network][now.group][now.image];
      var Q = math.enlarge(math[now.mapping ? "fMax" : "fSum"](A, group.channels, now.p), group.size, size);
      var top = Math.max.apply(null, Q);
      function light(i) { return colour(Q[i] / top); }
      function photo(i) { return [rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]]; }
      draw(picture, photo);
      draw(map, light);
      draw(overlay, function (i) { return photo(i).map(function (c, k) { return mix(c, light(i)[k], 0.75); }); });
      place.dataset.energy = math.energy(Q, mask);
      said.textContent = "On the object lie " + digits(100 * math.energy(Q, mask), 1) + " % of the map's sum (a map that knows nothing: " +
        digits(100 * mask.reduce(add, 0) / mask.length, 1) + " %). Its highest point is " + (math.pointing(Q, mask) ? "on" : "off") + " the object.";
    }
    function set(key) { return function (value) { now[key] = value; show(); }; }
    var power = slider("p", 0, 4, 0.05, 1, function (x) { return digits(Math.pow(2, x), 2); }, function (x) { set("p")(Math.pow(2, x)); });
    place.append(
      el("div", { class: "lab-controls" }, [
        choice("image", data.images.map(function (image) { return image.title; }), set("image")),
        choice("network", data.networks.map(function (network) { return network.name; }), set("network")),
        choice("group", data.networks[0].groups.map(function (group) { return group.name; }), set("group")),
        choice("mapping", ["sum of |A|^p", "maximum of |A|^p"], set("mapping")), power.node]),
      el("div", { class: "lab-panels" }, [panel("image", picture), panel("map", map), panel("both", overlay)]), said);
    power.start();
  };

  // data: image {size, rgb}, size of the maps, teacher: its map, steps: [numbers], frames: [the student's map at each of them]
  labs.transfer = function (place, data) {
    var size = data.image.size, last = data.frames.length - 1, rgb = bytes(data.image.rgb), timer = null;
    var picture = canvas(size, "the image"), T = canvas(size, "where the teacher looks"), S = canvas(size, "where the student looks");
    var teacher = Array.from(bytes(data.teacher)), frames = data.frames.map(function (text) { return Array.from(bytes(text)); });
    function photo(i) { return [rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]]; }
    function over(onto, map) {
      var Q = math.enlarge(map, data.size, size), top = Math.max.apply(null, Q);
      draw(onto, function (i) { return photo(i).map(function (c, k) { return mix(c, colour(Q[i] / top)[k], 0.75); }); });
    }
    function show(n) {
      over(S, frames[n]);
      place.dataset.cosine = likeness(n);
    }
    function likeness(n) { return dot(math.normalize(frames[n]), math.normalize(teacher)); }
    function name(n) { return data.steps[n] + ", cosine of the two maps " + digits(likeness(n), 2); }
    var time = slider("steps of training", 0, last, 1, last, name, show);
    var input = time.node.querySelector("input"), button = el("button", { type: "button", class: "lab-button" });
    function go(n) { input.value = n; time.start(); }
    function play(on) {
      var wait = 0;  // the last picture stays for a while
      clearInterval(timer);
      timer = on ? setInterval(function () { if (+input.value < last) { go(+input.value + 1); } else if (++wait > 15) { wait = 0; go(0); } }, 150) : null;
      button.textContent = on ? "pause" : "play";
    }
    button.addEventListener("click", function () { play(!timer); });
    input.addEventListener("pointerdown", function () { play(false); });
    input.addEventListener("keydown", function (event) { if (event.key !== "Tab") { play(false); } });
    place.append(
      el("div", { class: "lab-panels lab-three" }, [panel("image", picture), panel("the teacher looks here", T), panel("the student looks here", S)]),
      el("div", { class: "lab-controls" }, [button, time.node]));
    draw(picture, photo);
    over(T, teacher);
    time.start();
    play(!root.matchMedia("(prefers-reduced-motion: reduce)").matches);
  };

  // data: teacher and student, maps of size * size numbers
  labs.loss = function (place, data) {
    var size = data.size, student = data.student.slice(), highest = Math.max.apply(null, student) || 1;  // unlike the teacher's
    var said = el("p", { class: "lab-said", role: "status" });
    function grid(title, edit) {
      var cells = Array.from({ length: size * size }, function (_, i) {
        return el(edit ? "button" : "span", edit ? { type: "button", tabindex: i ? -1 : 0 } : {});
      });
      var node = el("div", { class: "lab-grid", role: edit ? "group" : "img", "aria-label": title }, cells);
      node.style.gridTemplateColumns = "repeat(" + size + ", 1fr)";
      return { node: panel(title, node), cells: cells };
    }
    var T = grid("teacher's map"), S = grid("student: change it", true), D = grid("difference");
    var G = grid("the next step");
    function paint(cells, values, scale, signed) {
      cells.forEach(function (cell, i) {
        var x = values[i] / (scale || 1), rgb = signed ? (x > 0 ? [213, 94, 0] : [0, 114, 178]) : colour(x);
        cell.style.background = signed ? "rgba(" + rgb + "," + Math.min(Math.abs(x), 1) + ")" : "rgb(" + rgb.map(Math.round) + ")";
      });
    }
    function show() {
      var s = math.normalize(student), t = math.normalize(data.teacher);
      var gap = s.map(function (x, i) { return x - t[i]; });
      var zero = math.norm(student) === 0, step = zero ? gap.map(function () { return 0; }) : math.squaredGradient(student, data.teacher);
      step = step.map(function (x) { return -x; });
      paint(T.cells, data.teacher, Math.max.apply(null, data.teacher));
      paint(S.cells, student, Math.max.apply(null, student));
      paint(D.cells, gap, Math.max.apply(null, gap.map(Math.abs)), true);
      paint(G.cells, step, Math.max.apply(null, step.map(Math.abs)), true);
      S.cells.forEach(function (cell, i) {
        cell.setAttribute("aria-label", "row " + (1 + Math.floor(i / size)) + ", column " + (1 + i % size) + ": " + digits(student[i], 2));
      });
      place.dataset.squared = math.squaredLoss(student, data.teacher);
      place.dataset.norm = math.normLoss(student, data.teacher);
      said.textContent = zero ? "A map of zeros has no direction: its loss is defined as that of a zero vector, and it gives no gradient." :
        "cosine " + digits(dot(s, t), 4) + "; squared form " + digits(math.squaredLoss(student, data.teacher), 5) + " = 2 (1 − cosine) / " + size * size +
        "; norm form " + digits(math.normLoss(student, data.teacher), 4) + "; length of the student's map " + digits(math.norm(student), 2) +
        "; length of the squared form's gradient " + digits(math.norm(math.squaredGradient(student, data.teacher)), 5) + ".";
    }
    function change(i, factor) { student[i] = Math.max(0, student[i] + factor * highest / 8); show(); }
    S.cells.forEach(function (cell, i) {
      cell.addEventListener("pointerdown", function (event) { change(i, event.shiftKey ? -1 : 1); });
      cell.addEventListener("pointerenter", function (event) { if (event.buttons) { change(i, event.shiftKey ? -1 : 1); } });
      cell.addEventListener("keydown", function (event) {
        var move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: size, ArrowUp: -size }[event.key];
        var other = S.cells[i + move];
        if (move && other) { cell.tabIndex = -1; other.tabIndex = 0; other.focus(); }
        if ("+=Enter ".includes(event.key)) { change(i, 1); }
        if ("-_Backspace".includes(event.key)) { change(i, -1); }
        if (move || "+=-_ ".includes(event.key)) { event.preventDefault(); }
      });
    });
    function button(label, act) {
      var made = el("button", { type: "button", class: "lab-button" }, [label]);
      made.addEventListener("click", function () { student = act(student); show(); });
      return made;
    }
    place.append(
      el("div", { class: "lab-controls" }, [
        button("start again", function () { return data.student.slice(); }),
        button("the teacher's", function () { return data.teacher.slice(); }),
        button("twice as strong", function (Q) { return Q.map(function (q) { return 2 * q; }); }),
        button("one step", function (Q) {
          var step = math.squaredGradient(Q, data.teacher), rate = 0.1 * math.norm(Q) / Math.max(math.norm(step), 1e-12);
          return math.norm(Q) ? Q.map(function (q, i) { return Math.max(0, q - rate * step[i]); }) : Q;
        })]),
      el("div", { class: "lab-panels" }, [T.node, S.node, D.node, G.node]), said,
      el("p", { class: "lab-help" }, ["Press a cell to raise it, with shift to lower it, or draw. Keys: arrows, + and −. The difference is student minus teacher, both normalised. Orange: above zero, blue: below."]));
    show();
  };

  // data: classes, cases [{title, label, teacher: logits, student: logits}]
  labs.temperature = function (place, data) {
    var now = { n: 0, T: 1 }, said = el("p", { class: "lab-said", role: "status" }), K = data.classes.length;
    var chart = svg("svg", { viewBox: "0 0 640 " + (40 * K + 8), role: "img", "aria-label": "probabilities of each class" });
    var bars = data.classes.map(function (name, k) {
      var y = 40 * k + 4, made = [svg("rect", { x: 150, y: y + 3, height: 14, class: "lab-teacher" }), svg("rect", { x: 150, y: y + 21, height: 14, class: "lab-student" })];
      made.label = svg("text", { x: 142, y: y + 23, "text-anchor": "end" }, name);
      made.values = [15, 33].map(function (down) { return svg("text", { y: y + down, class: "lab-value" }); });
      made.concat(made.label, made.values).forEach(function (node) { chart.append(node); });
      return made;
    });
    function show() {
      var one = data.cases[now.n], p = math.softmax(one.teacher, now.T), q = math.softmax(one.student, now.T);
      bars.forEach(function (bar, k) {
        [p[k], q[k]].forEach(function (share, who) {
          bar[who].setAttribute("width", 390 * share);  // leaves room for a figure at the right
          bar.values[who].setAttribute("x", 156 + 390 * share);
          bar.values[who].textContent = (100 * share).toFixed(1) + " %";
        });
        bar.label.setAttribute("class", k === one.label ? "lab-right" : "");
      });
      var pull = q.map(function (x, k) { return (x - p[k]) / now.T; });  // d KL / d student's logits
      place.dataset.loss = math.distillation(one.student, one.teacher, now.T);
      said.textContent = "Entropy of the teacher's answer " + digits(math.entropy(p), 3) + " of " + digits(Math.log(K), 3) +
        "; KL " + digits(math.divergence(p, q), 4) + ", its gradient " + digits(math.norm(pull), 4) +
        "; T² KL " + digits(math.distillation(one.student, one.teacher, now.T), 4) + ", its gradient " + digits(now.T * now.T * math.norm(pull), 4) + ".";
    }
    var heat = slider("temperature T", 0, 5, 0.05, 0, function (x) { return digits(Math.pow(2, x), 2); }, function (x) { now.T = Math.pow(2, x); show(); });
    place.append(
      el("div", { class: "lab-controls" }, [
        choice("image", data.cases.map(function (one) { return one.title; }), function (n) { now.n = n; show(); }), heat.node]),
      chart, said, el("p", { class: "lab-help" }, ["Upper bar: teacher. Lower bar: student. The true class is in bold."]));
    heat.start();
  };

  // data: columns [names], rows [[...]], curves [[test error of each epoch]]
  labs.runs = function (place, data) {
    var order = { column: 0, up: true }, id = "lab-" + ++count;
    var filter = el("input", { type: "search", id: id, placeholder: "method=at seed=0" });
    var body = el("tbody"), said = el("p", { class: "lab-said", role: "status" });
    var chart = svg("svg", { viewBox: "0 0 640 208", role: "img", "aria-label": "test error after each epoch of the run in focus" });
    var heads = data.columns.map(function (name, k) {
      var button = el("button", { type: "button" }, [name]);
      button.addEventListener("click", function () { order = { column: k, up: order.column === k ? !order.up : true }; show(); });
      return el("th", { scope: "col" }, [button]);
    });
    function plot(n) {
      var curve = data.curves[n], low = Math.min.apply(null, curve), high = Math.max.apply(null, curve);
      var points = curve.map(function (y, i) {
        return (50 + 570 * (curve.length > 1 ? i / (curve.length - 1) : 0)).toFixed(1) + "," + (170 - 150 * (high > low ? (y - low) / (high - low) : 0)).toFixed(1);
      });
      chart.replaceChildren(svg("polyline", { points: points.join(" "), class: "lab-curve" }),
        svg("text", { x: 44, y: 24, "text-anchor": "end" }, high.toFixed(1)), svg("text", { x: 44, y: 174, "text-anchor": "end" }, low.toFixed(1)),
        svg("text", { x: 335, y: 196, "text-anchor": "middle" }, "test error in %, epochs 1 to " + curve.length + ": " + data.rows[n][0]));
      body.querySelectorAll("tr").forEach(function (row) { row.classList.toggle("lab-now", +row.dataset.n === n); });
    }
    function less(a, b) { return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }); }
    function show() {
      var words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      var kept = data.rows.map(function (row, n) { return n; }).filter(function (n) {
        return words.every(function (word) {  // "column=value", or a part of any cell
          var pair = word.split("="), column = data.columns.indexOf(pair[0]);
          return data.rows[n].some(function (cell, k) {
            var text = String(cell).toLowerCase();
            return pair.length === 2 && column >= 0 ? k === column && text === pair[1] : text.includes(word);
          });
        });
      }).sort(function (a, b) { return (order.up ? 1 : -1) * less(data.rows[a][order.column], data.rows[b][order.column]); });
      heads.forEach(function (head, k) { head.setAttribute("aria-sort", k !== order.column ? "none" : order.up ? "ascending" : "descending"); });
      body.replaceChildren.apply(body, kept.map(function (n) {
        var row = el("tr", { tabindex: 0 }, data.rows[n].map(function (cell) { return el("td", {}, [typeof cell === "number" && !Number.isInteger(cell) ? cell.toFixed(2) : String(cell)]); }));
        row.dataset.n = n;
        ["pointerenter", "focus"].forEach(function (event) { row.addEventListener(event, function () { plot(n); }); });
        return row;
      }));
      said.textContent = kept.length + " of " + data.rows.length + " runs";
      if (kept.length) { plot(kept[0]); } else { chart.replaceChildren(); }
    }
    filter.addEventListener("input", show);
    place.append(
      el("div", { class: "lab-controls" }, [el("div", { class: "lab-control" }, [el("label", { for: id }, ["filter"]), filter]), said]), chart,
      el("div", { class: "lab-scroll", tabindex: 0, role: "region", "aria-label": "table of runs" }, [el("table", {}, [el("caption", {}, ["Recorded runs, one in each row."]), el("thead", {}, [el("tr", {}, heads)]), body])]));
    show();
  };

  // ---- where they start --------------------------------------------------------------------------------------------
  function start() {
    document.querySelectorAll(".atbook-lab").forEach(function (place) {
      var held = place.querySelector("script[type='application/json']");
      if (!held || place.dataset.started) { return; }
      place.dataset.started = "yes";
      var figure = place.dataset.figure && document.getElementById(place.dataset.figure);
      var picture = figure && figure.querySelector("img");
      if (picture) {  // the lab moves into the figure, above its caption
        (picture.closest("a") || picture).hidden = true;
        figure.insertBefore(place, figure.firstChild);
      }
      labs[place.dataset.lab](place, JSON.parse(held.textContent));
    });
  }
  root.atbookLabs = { math: math, labs: labs, start: start };
  if (document.readyState === "loading") { document.addEventListener("DOMContentLoaded", start); } else { start(); }
})(typeof window === "undefined" ? globalThis : window);
