"""Theme and style of the page: system fonts, and light or dark mode as the visitor chooses."""

from __future__ import annotations

from promptlora.inspect.drawing import DARK, LIGHT, RULES

_FIGURES = f"""
.gradio-container .pl{{{LIGHT};--paper:var(--body-background-fill)}}
.dark .gradio-container .pl{{{DARK};--paper:var(--body-background-fill)}}
{RULES}"""
CSS = (
    _FIGURES
    + """
.gradio-container main.fillable,.gradio-container main{max-width:1240px!important;width:100%!important;margin:0 auto!important;padding:0!important}
.gradio-container .app{padding:1rem!important}
.gradio-container{--body-text-color-subdued:#5b6878;--block-info-text-color:#5b6878;--pl-gain:#0a7d48;--pl-loss:#b93a0b;--pl-base:#6e7781;--pl-hot:#0b57d0;--button-primary-background-fill:#1f6feb;--button-primary-background-fill-hover:#1a5fd0}
.dark .gradio-container{--body-text-color-subdued:#a3b0c2;--block-info-text-color:#a3b0c2;--pl-gain:#56d397;--pl-loss:#ff9a70;--pl-base:#9198a1;--pl-hot:#7cb0ff}
.html-container{padding:0!important}
.pl-head h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0}.pl-head p{margin:.15rem 0;max-width:46rem}
.pl-soft,.pl-soft *{color:var(--body-text-color-subdued)!important;font-weight:400}
h2.pl-title{font-size:1.2rem;margin:1rem 0 .1rem}.pl-lead{margin:.1rem 0;color:var(--body-text-color-subdued)}
.pl-status{margin:0;padding:.45rem .7rem;border-left:4px solid var(--border-color-primary);background:var(--background-fill-secondary);border-radius:4px;overflow-wrap:anywhere}
.html-container.pending{opacity:1!important}.wrap.minimal{opacity:1!important;background:none!important;pointer-events:none;height:100%;width:100%}
.wrap.minimal .progress-text{position:absolute;inset:.5rem .8rem auto auto!important;transform:none!important;z-index:2;margin:0;padding:0;background:none;color:var(--body-text-color-subdued);font:400 .85rem system-ui,sans-serif}
.pl-busy{border-color:var(--pl-hot)}.pl-done{border-color:var(--pl-gain)}.pl-error{border-color:var(--pl-loss)}
.pl-warn{border-color:var(--pl-loss)}.pl-warn::before{content:"Warning: ";font-weight:600}
.pl-error::before{content:"Not done: ";font-weight:600}
.pl-block{border:1px solid var(--border-color-primary);border-radius:8px;margin:.6rem 0;overflow:hidden}
.pl-input{white-space:pre-wrap;margin:0;padding:.5rem .8rem;background:var(--background-fill-secondary);font-size:1rem;font-weight:600;overflow-wrap:anywhere;max-height:9rem;overflow-y:auto}
.pl-four{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr));gap:1px;background:var(--border-color-primary)}
.pl-four>.pl-cell{background:var(--body-background-fill)}
.pl-cell{padding:.5rem .8rem .7rem}.pl-cell h4{margin:0;font-size:.9rem;font-weight:600}.pl-cell p{margin:0 0 .3rem;font-size:.8rem}
:is(.pl-adapted,.pl-adapted_in_context) h4{color:var(--pl-hot)}.pl-cell:is(.pl-adapted,.pl-adapted_in_context){box-shadow:inset 0 3px 0 var(--pl-hot)}
.pl-answers h2{margin:.2rem 0 0}
.pl-answer{white-space:pre-wrap;overflow-wrap:anywhere;min-height:1.5em;max-height:22rem;overflow-y:auto}
.pl-caret{display:inline-block;width:.5em;height:1em;vertical-align:text-bottom;background:var(--pl-hot);opacity:.6}
.pl-strip{display:flex;flex-wrap:wrap;gap:3px;margin:.3rem 0}
.pl-token{display:inline-flex;flex-direction:column;align-items:center;justify-content:end;border:1px solid var(--border-color-primary);border-radius:4px;padding:0 .35rem;min-height:2.4rem;color:var(--body-text-color)}
button.pl-token,button.pl-thumb{cursor:pointer;background:none}button.pl-token:hover,button.pl-thumb:hover{background:var(--background-fill-secondary)}
.pl-token,.pl-thumb{font-weight:400}.pl-token small,.pl-fold{font-size:.72rem;color:var(--body-text-color-subdued)}.pl-fold{border-style:dashed}
:is(.pl-token,.pl-thumb)[aria-pressed=true]{outline:2px solid var(--pl-hot)}
.pl-thumbs{display:flex;flex-wrap:wrap;gap:6px}.pl-thumb{border:1px solid var(--border-color-primary);border-radius:6px;padding:.35rem .45rem;color:var(--body-text-color)}
.pl-thumb span{display:flex;gap:6px;justify-content:center}.pl-thumb small{font-size:.75rem}
.pl-figure{overflow-x:auto}.pl-figure svg{max-width:100%;height:auto;min-width:var(--least)}
.pl-maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr));gap:.5rem;align-items:start}
svg[data-row],[data-at]{cursor:pointer}
.pl-flow svg{transition:none}.pl-flow :is(rect,path,circle){transition:d .35s,x .35s,y .35s,width .35s,stroke-width .35s}
.pl-two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:1rem;align-items:start}
:is(#walk,#compared,#refined) h3{font-size:1rem;font-weight:600;margin:.9rem 0 .1rem}
.pl-token code,.pl-walk code{background:none!important;border:0!important;padding:0!important;font-size:.85rem;white-space:pre}
.pl-walk p{margin:.35rem 0}.pl-walk output{font-weight:600;font-variant-numeric:tabular-nums}
.pl-wide{overflow:auto;max-height:32rem;border:1px solid var(--border-color-primary);border-radius:8px;margin:.6rem 0}
.pl-wide:focus-visible{outline:2px solid var(--pl-hot)}
.pl-wide table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.88rem;margin:0}
.pl-wide th,.pl-wide td{padding:.22rem .6rem;text-align:right;white-space:nowrap;margin:0}
.gradio-container .prose .pl-wide :is(table,tr,th,td){border:0}
.gradio-container .prose .pl-wide th,.gradio-container .prose .pl-wide td{padding:.22rem .6rem;text-align:right;border-bottom:1px solid var(--border-color-primary)}
.pl-wide .pl-text{text-align:left!important}
.pl-wide thead th{position:sticky;top:0;z-index:1;background:var(--background-fill-secondary);border-bottom:1px solid var(--border-color-primary);white-space:normal;vertical-align:bottom}
.pl-wide tr.pl-here{outline:2px solid var(--pl-hot);outline-offset:-2px}
.pl-wide tbody tr:nth-child(even){background:var(--background-fill-secondary)}
.pl-pair{display:grid;grid-template-columns:1fr 1fr;gap:0 1rem;min-width:9rem}.pl-pair>*{position:relative}
thead .pl-pair{font-weight:400}.pl-second{color:var(--pl-hot)}
.pl-bar{position:absolute;right:0;bottom:-2px;height:3px;border-radius:2px}
.pl-bar.pl-base{background:var(--pl-base)}.pl-bar.pl-adapted{background:var(--pl-hot);box-shadow:none}
.pl-gain{color:var(--pl-gain)}.pl-loss{color:var(--pl-loss)}
.pl-wide tr.pl-key{outline:1px solid var(--pl-hot);outline-offset:-1px}
.gradio-container:not(:has(.pl-answers:not([data-done=false]))) :is(#look-section,#effect-section,#compare-section,#refine-section){display:none!important}
.gradio-container:not(:has(#look-status .pl-status)) #look-section,#look-panel:not(:has(.pl-walk)){display:none!important}
#glance{flex-wrap:wrap}#glance>*{min-width:min(300px,100%)!important}:is(#measure,#compare,#refine){max-width:16rem}
#which input{padding-right:1.8rem!important;text-overflow:ellipsis}
footer{display:none!important}
button:focus-visible,textarea:focus-visible,input:focus-visible,a:focus-visible{outline:2px solid var(--pl-hot)!important;outline-offset:1px}
@media (max-width:720px){
 .pl-pair{grid-template-columns:1fr;min-width:0}.pl-walk .pl-wide table{font-size:.8rem}
 .pl-walk .pl-wide th,.pl-walk .pl-wide td{padding-inline:.25rem!important}.pl-walk .pl-wide code{font-size:.75rem;display:inline-block;max-width:5.5rem;overflow:hidden;text-overflow:ellipsis;vertical-align:middle}
 .pl-walk .pl-wide :is(th,td):first-child{display:none}
 .gradio-container .app{padding:.5rem!important}
}
@media (prefers-reduced-motion:reduce){*{transition:none!important;animation:none!important}}
"""
)
