// Runs once for each of the two result elements, as the body of a function that is given `element`.
// One listener on the element hears the clicks on everything that is ever put into it.

const player = () => document.querySelector("#md-player video");

const go = (time, until) => {
  const video = player();
  if (!video) return;
  window.momentdetrUntil = until;
  video.currentTime = time;
  video.play().catch(() => {}); // a browser may forbid it; the picture is at the right place all the same
};

element.addEventListener("click", (event) => {
  const moment = event.target.closest("[data-start]");
  if (moment) {
    const start = Number(moment.dataset.start);
    const end = Number(moment.dataset.end);
    go(start + Math.min(0.05, (end - start) / 4), end);
    return;
  }
  const track = event.target.closest("[data-track]");
  if (track) {
    const box = track.getBoundingClientRect();
    const duration = Number(track.closest("[data-duration]").dataset.duration);
    go(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * duration, null);
  }
});

if (!window.momentdetrReady) {
  window.momentdetrReady = true;
  // Media events do not bubble, but they can be caught on their way down.
  document.addEventListener(
    "timeupdate",
    (event) => {
      const video = event.target;
      if (video !== player()) return;
      if (window.momentdetrUntil != null && video.currentTime >= window.momentdetrUntil) {
        video.pause();
        window.momentdetrUntil = null;
      }
      const line = document.querySelector("#md-line .md-timeline");
      if (!line) return;
      const now = Math.min(1, video.currentTime / Number(line.dataset.duration));
      line.style.setProperty("--now", now);
      for (const moment of document.querySelectorAll("#md-line [data-start], #md-found [data-start]")) {
        const inside = video.currentTime >= moment.dataset.start && video.currentTime <= moment.dataset.end;
        moment.classList.toggle("md-on", inside);
      }
    },
    true,
  );
}
