"""The look of the report: system fonts, light and dark by the reader's setting, printable."""

from __future__ import annotations

CSS = """
:root{--paper:#fff;--ink:#22262b;--soft:#5b6470;--line:#e3e6ea;--card:#f6f7f9;--blue:#0072b2;
--warn:#b45309;--warnbg:#fff7ed;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#16191d;--ink:#e6e8eb;--soft:#9aa3ad;
--line:#2c3138;--card:#1d2126;--blue:#56b4e9;--warn:#f0b060;--warnbg:#2a2218}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:0}
h2{font-size:1.15rem;margin:2.8rem 0 .8rem;padding-bottom:.35rem;
border-bottom:1px solid var(--line)}
.sub{color:var(--soft);margin:.35rem 0 1.6rem}
.verdict{border-left:4px solid var(--blue);background:var(--card);border-radius:0 8px 8px 0;
padding:1rem 1.3rem;margin:0 0 1rem}
.verdict p{margin:.35rem 0}.verdict:not(.all) p:first-of-type{font-size:1.12rem;font-weight:600}
.warn{border-left:4px solid var(--warn);background:var(--warnbg);border-radius:0 8px 8px 0;
padding:.7rem 1.3rem;margin:0 0 1rem;font-size:.93rem}
.warn p{margin:.25rem 0}.warn b{color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.6rem,1fr));gap:.75rem;
margin:1.4rem 0}
.card{background:var(--card);border-radius:8px;padding:.7rem .9rem}
.card span{display:block;color:var(--soft);font-size:.78rem}
.card b{font-size:1.05rem;white-space:nowrap;font-variant-numeric:tabular-nums}
figure{margin:1rem 0 0}figure img{width:100%;height:auto;display:block}
figcaption,.note{color:var(--soft);font-size:.85rem;margin:.6rem 0 0}
.scroll{overflow-x:auto;margin-top:1.2rem}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .5rem;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child,td.t,th.t{text-align:left}
tbody tr:hover{background:var(--card)}td small{color:var(--soft)}
tr.best td:first-child{font-weight:700}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--card);
padding:.12em .4em;border-radius:4px;overflow-wrap:anywhere}
details{margin:1rem 0}summary{cursor:pointer;color:var(--blue)}
footer{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.85rem}
@media print{main{max-width:none;padding:0}h2{break-after:avoid}
figure,.verdict,.cards{break-inside:avoid}body{font-size:11pt}.card,.verdict{border:1px solid #ccc}}
"""
