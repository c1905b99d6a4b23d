"""The report in a real browser: it fits a phone, can be read light and dark, and its failures can be searched."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from fake_run import make_run
from medley.report import write_report

PHONE = 360
"""CSS pixels; below the 390 of common phones."""
PROBE = """
(function () {
  function luminance(rgb) {
    return rgb.map(function (v) { v /= 255; return v <= .03928 ? v / 12.92 : Math.pow((v + .055) / 1.055, 2.4); })
      .reduce(function (sum, v, i) { return sum + v * [.2126, .7152, .0722][i]; }, 0);
  }
  function colour(text) { var found = (text.match(/[\\d.]+/g) || []).map(Number); return found.length === 4 && found[3] === 0 ? null : found.slice(0, 3); }
  function ground(node) {
    for (; node; node = node.parentElement) { var c = colour(getComputedStyle(node).backgroundColor); if (c && c.length) return c; }
    return [255, 255, 255];
  }
  var pale = [];
  document.querySelectorAll("p, td, th, summary, a, h1, h2, h3, dd, dt, figcaption, label, li, svg text:not(.inside)").forEach(function (node) {
    if (!node.textContent.trim() || !node.getClientRects().length) return;
    var style = getComputedStyle(node), ink = colour(node.namespaceURI.indexOf("svg") > 0 ? style.fill : style.color);
    var a = luminance(ink), b = luminance(ground(node));
    var ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) pale.push(node.tagName + " " + node.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
  });
  var wide = [];
  document.querySelectorAll("body *").forEach(function (node) {
    var inside = node.closest(".scroll, nav, pre, svg");
    if (!inside && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !node.classList.contains("unseen") && !node.classList.contains("skip")) wide.push(node.tagName + "." + node.className);
  });
  var nameless = [];
  document.querySelectorAll("a[href], summary, input, select, [tabindex]").forEach(function (node) {
    var name = node.getAttribute("aria-label") || (node.labels && node.labels.length && node.labels[0].textContent) || node.textContent;
    if (!name.trim()) nameless.push(node.outerHTML.slice(0, 60));
  });
  var find = document.getElementById("find"), seen = {};
  function visible() { return Array.prototype.filter.call(document.querySelectorAll(".case"), function (c) { return c.getClientRects().length; }).length; }
  seen.all = visible();
  find.value = WORD; find.dispatchEvent(new Event("input")); seen.word = visible(); seen.hits = document.getElementById("hits").textContent;
  find.value = "no such words anywhere"; find.dispatchEvent(new Event("input")); seen.none = visible();
  find.value = ""; find.dispatchEvent(new Event("input")); seen.again = visible();
  var show = document.getElementById("show"); show.value = "lost"; show.dispatchEvent(new Event("change")); seen.lost = visible();
  var order = Array.prototype.map.call(document.querySelectorAll("h1, h2, h3"), function (h) { return Number(h.tagName[1]); });
  parent.postMessage(JSON.stringify({
    pale: pale, wide: wide, nameless: nameless, seen: seen, order: order,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, width: innerWidth, room: document.documentElement.clientWidth,
    scroll: document.documentElement.scrollWidth, lang: document.documentElement.lang,
    requests: performance.getEntriesByType("resource").map(function (r) { return r.name; })
  }), "*");
})();
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("browser") / "run", queries=30)
    write_report(folder)
    return folder


def probed(chromium: str, run: Path, folder: Path, *, width: int, dark: bool) -> dict[str, Any]:
    """What the page says of itself in a frame of that width."""
    page = (run / "report.html").read_text(encoding="utf-8")
    probe = PROBE.replace("WORD", json.dumps("COPPER glacier"))
    (folder / "probed.html").write_text(
        page.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8"
    )
    (folder / "frame.html").write_text(
        "<!doctype html><title>frame</title><pre id='said'></pre><script>addEventListener('message', function (e) "
        "{ document.getElementById('said').textContent = e.data; });</script>"
        f"<iframe src='probed.html' width='{width}' height='900' style='border:0'></iframe>",
        encoding="utf-8",
    )
    flags = ["--force-dark-mode"] if dark else []
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *flags,
         "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom", (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=170, check=True,
    )  # fmt: skip
    found = re.search(r"<pre id=\"said\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found and found.group(1), done.stderr[-500:]
    return json.loads(unescape(found.group(1)))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(PHONE, False), (1280, True)], ids=["phone", "dark"])
def test_the_page_can_be_read_and_searched(
    chromium: str, run: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    said = probed(chromium, run, tmp_path, width=width, dark=dark)
    assert said["width"] == width and said["dark"] == dark and said["lang"] == "en"
    assert said["scroll"] <= said["room"] and said["wide"] == []
    assert said["pale"] == [], "contrast below 4.5 to 1 (WCAG AA)"
    assert said["nameless"] == []
    assert said["requests"] == [], "it asks for nothing"
    assert said["order"][0] == 1 and all(
        b - a <= 1 for a, b in zip(said["order"], said["order"][1:], strict=False)
    )
    cases = json.loads((run / "failures.json").read_text(encoding="utf-8"))
    texts = [json.dumps(case).lower() for case in cases]
    matching = sum("copper" in text and "glacier" in text for text in texts)
    assert 0 < matching < len(cases)
    lost = sum(case["after"] < case["before"] for case in cases)
    assert said["seen"] == {
        "all": len(cases), "word": matching, "hits": f"{matching} of {len(cases)}", "none": 0, "again": len(cases),
        "lost": lost,
    }  # fmt: skip
