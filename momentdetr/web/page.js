// Moves the player and follows it. Times in the page count from the first picture of the video; the player's clock may
// begin earlier (a sound track that starts first), which is the time line's data-offset.
// Runs once for each of the two result elements, as the body of a function that is given `element`.
// One listener on the element hears the clicks on everything that is ever put into it.

const line = () => document.querySelector("#md-line .md-timeline");
const player = () => document.querySelector("#md-player video");

const offset = () => Number(line()?.dataset.offset ?? 0);

const go = (time, until) => {
  const video = player();
  if (!video) return;
  window.momentdetrUntil = until;
  video.currentTime = time + offset();
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
    const part = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    go(part * Number(line().dataset.duration), null);
  }
});

if (!window.momentdetrReady) {
  window.momentdetrReady = true;
  // Media events do not bubble, but they can be caught on their way down.
  document.addEventListener(
    "timeupdate",
    (event) => {
      const video = event.target;
      if (video !== player() || !line()) return;
      const time = video.currentTime - offset();
      if (window.momentdetrUntil != null && time >= window.momentdetrUntil) {
        video.pause();
        window.momentdetrUntil = null;
      }
      line().style.setProperty("--now", Math.max(0, Math.min(1, time / Number(line().dataset.duration))));
      for (const moment of document.querySelectorAll("#md-line [data-start], #md-found [data-start]")) {
        const inside = time >= Number(moment.dataset.start) && time <= Number(moment.dataset.end);
        moment.classList.toggle("md-on", inside);
      }
    },
    true,
  );
}
