() => {
  // Gradio shows an uploaded image with an empty alternative text.
  const name = () => document.querySelectorAll('[id$="-image"] img[alt=""]').forEach(
    image => { image.alt = "The image that is asked about"; });

  // What a screen reader says without being asked: the result, and while somebody waits, the place in the queue.
  const announce = () => {
    const result = document.querySelector("#ask-result .prose");
    if (result && !result.hasAttribute("aria-live")) {
      for (const [key, value] of [["role", "status"], ["aria-live", "polite"], ["aria-atomic", "true"]])
        result.setAttribute(key, value);
    }
    document.querySelectorAll('.vp-thumb img:not([alt=""])').forEach(image => { image.alt = ""; });  // beside its words
  };

  // Darken what the keep slider drops, from what the answer brought along: no request.
  const stays = (mask, i) => parseInt(mask[i >> 2], 16) >> (3 - (i & 3)) & 1;
  const drop = (moved) => {
    const figure = document.querySelector("#ask-picture .vp-live");
    const slider = document.querySelector("#ask-keep input[type=range]");
    const keep = Number(moved ?? slider?.value);
    if (!figure || !slider || !(keep > 0 && keep <= 1)) return;
    figure.dataset.drawn = keep;
    const canvas = figure.querySelector("canvas"), image = figure.querySelector("img");
    const pen = canvas.getContext("2d");
    if (canvas.width !== image.naturalWidth) {
      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    }
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const percent = Math.round(100 * keep);
    slider.setAttribute("aria-valuetext", `${percent} %`);
    if (!figure.dataset.live) return;
    if (figure.source !== figure.dataset.live) {
      figure.source = figure.dataset.live;
      figure.live = JSON.parse(figure.source);
    }
    const live = figure.live;
    const caption = figure.querySelector("figcaption"), time = figure.querySelector(".vp-frame");
    const now = live.frames ? Math.min(Number(time.value), live.frames.length - 1) : 0;
    let shown = "";  // of a clip, which frame is looked at
    if (live.frames) {
      shown = `${live.labels[now]}: `;
      time.setAttribute("aria-valuetext", live.labels[now]);
      if (image.getAttribute("src") !== live.frames[now]) image.src = live.frames[now];
    }
    if (!live.keeps) { caption.textContent = shown + live.said; return; }
    const asked = Math.abs(keep - live.asked) < 1e-6;
    if (!live.keeps.length || (!asked && !live.every)) {
      caption.textContent = shown + (asked ? live.said : `${live.said} Press Ask to see ${percent} %.`);
      return;
    }
    const away = live.keeps.map(one => Math.abs(one - keep));
    const at = away.indexOf(Math.min(...away)), mask = live.masks[at];
    pen.fillStyle = "rgba(16, 18, 26, 0.8)";
    let kept = 0;
    const left_over = live.frames?.map(() => [0, 0]);  // of each frame: tokens that stay, and all
    live.cells.forEach((cell, i) => {
      const stay = stays(mask, i), place = live.frame ? live.frame[i] : 0;
      kept += stay;
      if (left_over && place >= 0) { left_over[place][0] += stay; left_over[place][1] += 1; }
      if (stay || !cell || place !== now) return;
      const [left, top, right, bottom] = cell.map((v, k) => Math.round(v * (k % 2 ? canvas.height : canvas.width)));
      pen.fillRect(left, top, right - left, bottom - top);
    });
    if (left_over) {
      figure.querySelectorAll(".vp-over-time i").forEach((bar, i) => {
        const [some, all] = left_over[i];
        bar.style.setProperty("--kept", `${all ? 100 * some / all : 0}%`);
        bar.className = i === now ? "vp-now" : "";
        bar.title = `${live.labels[i]}: ${some} of ${all}`;
      });
      shown = `${live.labels[now]}: ${left_over[now][0]} of ${left_over[now][1]}. In all `;
      time.setAttribute("aria-valuetext", `${live.labels[now]}, ${left_over[now][0]} of ${left_over[now][1]} tokens stay`);
    }
    const near = away[at] > 1e-6 ? ` (at ${Math.round(100 * live.keeps[at])} %)` : "";
    const words = `${kept} of ${live.cells.length} visual tokens stay${near}`;
    slider.setAttribute("aria-valuetext", `${percent} %, ${words}`);
    caption.textContent = shown + (asked ? `${words}; the dropped ones are dark.`
      : `${words}. The answers are those of ${Math.round(100 * live.asked)} %: press Ask for ${percent} %.`);
  };
  document.addEventListener("input", event => {
    if (event.target.closest("#ask-keep")) drop(event.target.value);
    if (event.target.closest(".vp-frame")) drop();
  }, true);
  // A number out of range, or half a number, is put right when the box is left.
  document.addEventListener("focusout", event => { if (event.target.closest("#ask-keep")) setTimeout(() => drop(), 50); });
  // Gradio changes the elements of the last answer into those of the next, without what the script has set.
  const drawn = () => {
    const figure = document.querySelector("#ask-picture .vp-live");
    if (!figure || figure.dataset.drawn) return;
    figure.dataset.drawn = "soon";
    figure.querySelector("img").decode().catch(() => {}).then(() => requestAnimationFrame(() => drop()));
  };

  // The clock of the answer that is being written.
  setInterval(() => document.querySelectorAll("[aria-busy=true] .vp-clock").forEach(clock => {
    if (clock.base !== clock.dataset.seconds) { clock.base = clock.dataset.seconds; clock.since = performance.now(); }
    const seconds = Number(clock.base) + (performance.now() - clock.since) / 1000;
    clock.textContent = seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
  }), 100);

  document.addEventListener("click", async event => {
    const button = event.target.closest(".vp-copy");
    if (!button) return;
    const code = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {  // not allowed on pages without https: select it, for Ctrl-C
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl-C";
    }
    setTimeout(() => { button.textContent = "Copy as Python"; }, 2000);
  });

  const look = () => { name(); announce(); drawn(); };
  new MutationObserver(look).observe(document.body, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["data-live", "data-drawn", "src"]});
  document.documentElement.lang = "en";
  look();
}
