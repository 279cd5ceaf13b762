"""The look of a report: light, printable, without a script and without a font from elsewhere."""

from __future__ import annotations

REPORT_CSS = """
:root { --ink: #1f2937; --muted: #6b7280; --line: #e5e7eb; --soft: #f8fafc; --accent: #1d4ed8; --bad: #b91c1c; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.page { max-width: 1080px; margin: 0 auto; padding: 40px 32px 72px; }
header { border-bottom: 2px solid var(--ink); padding-bottom: 14px; margin-bottom: 20px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 24px 0 8px; }
p { margin: 8px 0; }
.subtitle { color: var(--muted); margin: 6px 0 0; overflow-wrap: anywhere; }
nav { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 12px 18px; }
nav strong { font-size: 13px; color: var(--muted); }
nav ol { margin: 4px 0 0; padding-left: 22px; columns: 3 220px; column-gap: 28px; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; margin: 8px 0 4px; max-width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
thead th { color: var(--muted); font-weight: 600; border-bottom: 1px solid #9ca3af; vertical-align: bottom;
  overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.definition { color: var(--muted); font-size: 12.5px; min-width: 320px; }
th[scope="row"] { font-weight: 500; overflow-wrap: break-word; }
table.matrix { font-size: 12px; }
table.matrix th, table.matrix td { padding: 3px 7px; }
table.matrix thead th { max-width: 110px; overflow-wrap: anywhere; }
table.matrix td.right { background: #dbeafe; font-weight: 600; }
.note { color: var(--muted); font-size: 13px; }
.nothing { color: var(--muted); }
figure { margin: 12px 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 4px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(185px, 1fr)); gap: 14px; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; font-size: 13px; line-height: 1.4; }
.card .image { height: 168px; background: var(--soft); display: flex; align-items: center; justify-content: center;
  color: var(--muted); }
.card img { max-width: 160px; max-height: 160px; }
.card .body { padding: 8px 10px 10px; }
.card p { margin: 0 0 6px; overflow-wrap: anywhere; }
.card dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 1px 8px; }
.card dt { color: var(--muted); }
.card dd { margin: 0; overflow-wrap: anywhere; }
.card dd.wrong { color: var(--bad); font-weight: 600; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; margin: 8px 0;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); margin: 8px 0; }
footer { margin-top: 48px; padding-top: 10px; border-top: 1px solid var(--line); color: var(--muted);
  font-size: 12.5px; }
@page { margin: 16mm; }
@media print {
  body { font-size: 11px; }
  .page { max-width: none; padding: 0; }
  nav, pre, .card .image { background: none; }
  h2, h3, caption { break-after: avoid; }
  figure, .card, tr, nav { break-inside: avoid; }
  .gallery { grid-template-columns: repeat(4, 1fr); }
  figure img { max-height: 230mm; }
  td.definition { min-width: 0; }
}
"""
