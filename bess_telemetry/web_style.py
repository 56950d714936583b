"""Style sheet and login page of the dashboard; nothing here loads anything from elsewhere."""

from __future__ import annotations

from html import escape

_COLOURS = """
:root{--bg:#f3f5f8;--card:#fff;--text:#17212b;--muted:#64717f;--line:#e3e8ee;--soft:#f0f3f6;
--grid:#5568e8;--pv:#e39a12;--house:#0e96ad;--battery:#1f9d63;--warn:#c77d06;--bad:#d1373f;--accent:#1f9d63}
"""
_DARK = """--bg:#10161c;--card:#19212a;--text:#e8edf2;--muted:#93a1af;--line:#2a3541;--soft:#222c37;
--grid:#8593ff;--pv:#f3b13c;--house:#35bdd3;--battery:#3cc583;--warn:#f0ab3d;--bad:#ff6b70;--accent:#3cc583"""

CSS = (
    _COLOURS
    + 'body.body--dark{'
    + _DARK
    + """}
body{background:var(--bg);color:var(--text);font-size:14px;overflow-wrap:anywhere}
.nicegui-content{padding:0;gap:0;display:block}
.bar{position:sticky;top:0;z-index:10;display:flex;flex-wrap:wrap;gap:8px 12px;align-items:center;
 padding:8px 16px;background:var(--card);border-bottom:1px solid var(--line)}
.bar h1{font-size:18px;line-height:1.3;font-weight:700;margin:0;letter-spacing:0}
.bar h1 span{font-weight:400;color:var(--muted)}
.bar .gap{flex:1}
.bar .q-btn{min-height:36px}
.bar .q-select{min-width:170px}
.logout{background:none;border:0;padding:8px;color:var(--muted);font:inherit;font-weight:500;cursor:pointer}
.logout:hover{color:var(--text)}
.chip{display:inline-block;border-radius:999px;padding:2px 10px;font-size:12px;font-weight:600;
 background:var(--soft);color:var(--muted);white-space:nowrap}
.chip.run{background:color-mix(in srgb,var(--battery) 16%,transparent);color:var(--battery)}
.chip.error,.chip.critical{background:color-mix(in srgb,var(--bad) 16%,transparent);color:var(--bad)}
.chip.warning,.chip.sleep,.chip.maintenance{background:color-mix(in srgb,var(--warn) 18%,transparent);color:var(--warn)}
.page{max-width:1360px;margin:0 auto;padding:14px 16px 32px;display:grid;gap:14px;
 grid-template-columns:minmax(0,1fr)}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:12px 16px;min-width:0}
.card h2,.group{font-size:13px;line-height:1.4;font-weight:700;letter-spacing:.01em;
 color:var(--muted);margin:0 0 8px}
.group{margin:4px 0 -4px}
.stack{display:grid;gap:14px;grid-template-columns:minmax(0,1fr);align-content:start;min-width:0}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,232px),1fr))}
.topology{margin:14px 0;overflow-x:auto}
.topology table{width:100%;border-collapse:collapse;font-size:14px}
.topology th,.topology td{text-align:left;padding:4px 12px 4px 0;white-space:nowrap}
.topology th{color:var(--muted);font-weight:500}
.topology tbody tr{border-top:1px solid var(--line)}
.topology .stem{font-family:monospace;color:var(--muted)}
.topology tr.stale .value,.topology tr.invalid .value{opacity:.55}
.wide{display:grid;gap:14px;grid-template-columns:minmax(0,1fr)}
@media(min-width:900px){.top{display:grid;gap:14px;grid-template-columns:400px minmax(0,1fr)}
 .wide{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media(max-width:899px){.top{display:grid;gap:14px;grid-template-columns:minmax(0,1fr)}}
@media(max-width:600px){.page{padding:8px 8px 24px;gap:8px}.card{padding:10px 12px}
 .stack,.cards,.wide,.top{gap:8px}.bar{padding:8px;position:static}.bar .gap{display:none}
 .bar h1{flex:1 1 auto}
 .bar form{order:1}.bar .small{order:2}.bar .q-select{order:3;flex:1 1 150px;min-width:0}.bar .q-btn{order:4}}
.care{padding:4px 0;border-top:1px solid var(--line)}
.care:first-child{border-top:0}
.scroll{max-height:320px;overflow:auto}
.muted{color:var(--muted)}
.small{font-size:12px}
.row{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:center}
.split{display:flex;justify-content:space-between;gap:6px;align-items:baseline}
.value{font-variant-numeric:tabular-nums}
.stale .value,.invalid .value{color:var(--muted)}
.stale,.invalid{--fade:.45}
.aged{display:none;color:var(--warn);font-size:12px;font-weight:600}
.stale .aged,.invalid .aged{display:inline}
.bat .name{font-weight:700;font-size:15px}
.bat .soc{font-size:27px;line-height:1.15;white-space:nowrap;font-weight:700;letter-spacing:-.02em}
.bat .now{font-size:14px;font-weight:600;text-align:right;letter-spacing:-.01em}
.bar2{height:10px;border-radius:6px;background:var(--soft);overflow:hidden;margin:6px 0 8px}
.bar2 div{height:100%;background:var(--battery);border-radius:6px;transition:width .6s;opacity:var(--fade,1)}
.bar2 div.low{background:var(--bad)}.bar2 div.mid{background:var(--warn)}
.facts{display:grid;grid-template-columns:auto minmax(0,1fr);gap:2px 8px;font-size:13px;margin:0}
.facts dt{color:var(--muted)}.facts dd{margin:0;text-align:right}
.why{margin-top:8px;padding:6px 10px;border-radius:8px;font-size:13px;
 background:color-mix(in srgb,var(--warn) 12%,transparent)}
.sentence{font-size:17px;line-height:1.4;font-weight:600;margin-bottom:8px}
.stale .sentence,.invalid .sentence{color:var(--muted)}
.steps{display:grid;gap:4px}
.step{display:grid;grid-template-columns:minmax(90px,1.2fr) minmax(120px,1.3fr) minmax(0,2.4fr);gap:2px 12px;
 padding:4px 10px;border-radius:8px;background:var(--soft);font-size:13px}
.step.bound{background:color-mix(in srgb,var(--warn) 16%,transparent)}
.step.bound b{color:var(--warn)}
@media(max-width:600px){.step{grid-template-columns:1fr auto}.step .reason{grid-column:1/-1}}
.trace+.trace{margin-top:12px;padding-top:12px;border-top:1px solid var(--line)}
.fault{display:grid;grid-template-columns:84px minmax(0,1fr) auto;gap:2px 10px;align-items:center;padding:6px 0;
 border-top:1px solid var(--line)}
.fault:first-child{border-top:0}
.fault .chip{justify-self:start}.fault .gone{opacity:.7}
.none{color:var(--muted);padding:4px 0}
.chart{width:100%;height:230px}
.cellchart{width:100%;height:170px}
.flow svg{display:block;width:100%;max-width:440px;margin:0 auto;height:auto}
.flow text{fill:var(--text);text-anchor:middle;font-family:inherit}
.flow .v{font-size:16px;font-weight:700}.flow .n{font-size:13px;font-weight:600}
.flow .d{font-size:12px;fill:var(--muted)}.flow .s{font-size:13px;font-weight:600;fill:var(--muted)}
.flow .disc{fill:var(--card);stroke-width:2.5}.flow .ring{fill:none;stroke-width:6;transition:stroke-dasharray .6s}
.flow .icon{fill:none;stroke-width:1.9;stroke-linecap:round;stroke-linejoin:round}
.flow .wire{stroke:var(--line);stroke-width:5;fill:none;stroke-linecap:round}
.flow .move{fill:none;stroke-width:3;stroke-linecap:round;stroke-dasharray:3 11;animation:move 1.2s linear infinite}
.flow .off .move,.flow .off .head{display:none}
.flow .back .move{animation-direction:reverse}
.flow .fast .move{animation-duration:.6s}.flow .slow .move{animation-duration:2.2s}
.flow .unsure .wire{stroke-dasharray:4 7;stroke-width:3}
.flow .stale .v,.flow .invalid .v{fill:var(--muted)}.flow .stale .icon,.flow .invalid .icon{opacity:.45}
.flow .stale .d,.flow .invalid .d{fill:var(--warn)}
@keyframes move{from{stroke-dashoffset:14}to{stroke-dashoffset:0}}
@media(prefers-reduced-motion:reduce){.flow .move{animation:none}}
"""
)

#: Keeps the points of the charts in the browser, so that only new ones travel.
SCRIPT = """
window.bessRows = {};
window.bessChart = (id, rows, from, to, tolerance, tries = 50) => {
  const chart = getElement(id)?.chart;
  if (!chart) {
    if (tries > 0) setTimeout(() => window.bessChart(id, rows, from, to, tolerance, tries - 1), 100);
    return;
  }
  const first = rows.length ? rows[0][0] - tolerance : Infinity;
  const kept = (window.bessRows[id] || []).filter((r) => r[0] >= from && r[0] < first);
  window.bessRows[id] = kept.concat(rows);
  chart.setOption({dataset: {source: window.bessRows[id]}, xAxis: {min: from, max: to}});
};
"""

#: A battery with a bolt.
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect x="3" y="9" width="23" height="15" rx="4" '
    'fill="#1f9d63"/><rect x="27" y="13" width="3" height="7" rx="1.5" fill="#1f9d63"/>'
    '<path d="M16 10l-6 8h4l-1 5 6-8h-4z" fill="#fff"/></svg>'
)

_LOGIN = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>bess: log in</title><style>
@COLOURS@
@media(prefers-color-scheme:dark){:root{@DARK@}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--bg);color:var(--text);
 font:16px system-ui,sans-serif;padding:16px}
form{background:var(--card);border:1px solid var(--line);border-radius:16px;padding:28px;width:100%;max-width:360px}
h1{margin:0 0 2px;font-size:26px}p{margin:0 0 18px;color:var(--muted);font-size:14px}
label{display:block;font-size:14px;margin-bottom:6px}
input,button{width:100%;font:inherit;padding:11px 12px;border-radius:10px;border:1px solid var(--line);
 background:var(--bg);color:inherit}
button{margin-top:14px;background:var(--accent);border:0;color:#fff;font-weight:600;cursor:pointer}
.error{color:var(--bad);font-weight:600}</style></head><body>
<form method="post" action="/login"><h1>bess</h1><p>@SITE@</p>@ERROR@
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<button type="submit">Log in</button>
<p style="margin:18px 0 0">The first start wrote the password to <b>dashboard-password.txt</b> in the state
directory of the site.</p></form></body></html>"""


def login_page(site: str, error: str = '') -> str:
    """The login page: plain HTML, works without scripts."""
    shown = f'<p class="error" role="alert">{escape(error)}</p>' if error else ''
    page = _LOGIN.replace('@COLOURS@', _COLOURS).replace('@DARK@', _DARK)
    return page.replace('@SITE@', escape(site)).replace('@ERROR@', shown)
