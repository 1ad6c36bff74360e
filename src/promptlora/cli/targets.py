"""``promptlora targets``: where a model has its attention projections, and how large a hypernetwork for it would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from promptlora.cli.console import Json, dtype_named, out, print_json, print_table, size, working

if TYPE_CHECKING:
    from promptlora.hypernet.plan import Plan
    from promptlora.hypernet.targets import Targets


def targets(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Folder, Hugging Face id or qwen3-coder-next. Default: the embedded base."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Add the computed cost of a hypernetwork: parameters, memory, operations.")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, max=1 << 16, help="Rank of the adapters.")] = 16,
    context_size: Annotated[int, typer.Option(min=4, max=1 << 20, help="Context width of the hypernetwork.")] = 2048,
    bottleneck: Annotated[int, typer.Option(min=1, max=1 << 20, help="Inner width of lowrank heads.")] = 64,
    dtype: Annotated[str, typer.Option(help="Dtype of the adapters: float32 or bfloat16.")] = "bfloat16",
    roles: Annotated[
        str, typer.Option(help="Comma-separated roles; besides q, k, v, o a model may have z, b, a, gate.")
    ] = ("q,k,v,o"),
    list_all: Annotated[bool, typer.Option("--list", help="Print every projection with its module and rows.")] = False,
    json: Json = False,
) -> None:
    """Print the projections of a model, grouped by shape; reads its configuration, not its weights.

    Example: **promptlora targets qwen3-coder-next --plan**
    """
    with working("loading PyTorch and transformers") as say:
        from promptlora.hypernet.plan import plan_targets
        from promptlora.hypernet.targets import describe_targets
        from promptlora.models import load_meta

        made = load_meta(model, say)
        say("counting")
        options: dict[str, Any] = {
            "rank": rank,
            "context_size": context_size,
            "dtype": dtype_named(dtype),
            "head_bottleneck": bottleneck,
            "roles": tuple(role.strip() for role in roles.split(",")),
        }
        planned = plan_targets(made, **options) if plan else None
        found = planned.targets if planned else describe_targets(made, **options)
    if json:
        print_json(planned.to_dict() if planned else found.to_dict())
        return
    _print_targets(found, model or "embedded base")
    if list_all:
        for p in found.projections:
            rows = "" if p.rows is None else " rows " + ", ".join(f"{a}:{b}" for a, b in p.rows)
            out.print(
                f"{p.name} [{p.in_features}, {p.out_features}] in {p.module}{rows}", highlight=False, markup=False
            )
    if planned:
        _print_plan(planned)


def _print_targets(found: Targets, name: str) -> None:
    table = Table(title=f"{escape(name)} ({escape(found.model)})", title_justify="left")
    for heading in ("in", "out", "projections"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("which")
    for shape in found.shapes:
        table.add_row(str(shape.in_features), str(shape.out_features), str(shape.count), escape(shape.which))
    table.add_section()
    table.add_row("", "", str(len(found.projections)), f"in {found.modules} modules")
    print_table(table)
    scan = found.scan
    line = f"a scan for nn.Linear named q_proj, k_proj, v_proj, o_proj finds {scan.found} and misses {scan.missed}"
    if scan.missed:
        line += f" ({scan.missed_which})"
    if scan.mixed:
        line += f"; {scan.mixed} of those it finds hold another part as well"
    if scan.foreign:
        line += f"; {scan.foreign} of those it finds are no part of the causal model"
    out.print(escape(line), highlight=False)
    if found.others:
        parts = ", ".join(f"{role} {count}" for role, count in found.others.items())
        out.print(f"other parts, left alone unless asked for with --roles: {escape(parts)}", highlight=False)
    out.print(
        f"one adapter at rank {found.rank}: {found.adapter_parameters:,} values, {size(found.adapter_bytes)} in {found.dtype}",
        highlight=False,
    )
    heads = ", ".join(f"{kind} {n / 1e6:.1f} M" for kind, n in found.head_parameters.items())
    out.print(f"heads of a hypernetwork with context width {found.context_size}: {heads} parameters", highlight=False)


def _print_plan(plan: Plan) -> None:
    table = Table(
        title="hypernetwork by head kind: parameters of heads and whole, memory in float32 and in training with Adam, and "
        "for each adapter the operations, the same in tokens of the base, and the size",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for heading in ("head", "heads", "whole", "float32", "Adam", "FLOP", "tokens", "size"):
        table.add_column(heading, justify="left" if heading == "head" else "right", no_wrap=True)
    for head in plan.heads:
        table.add_row(
            head.kind,
            f"{head.heads / 1e6:.1f} M",
            f"{head.parameters / 1e6:.1f} M",
            size(head.bytes),
            size(head.training_bytes),
            f"{head.flops_per_adapter / 1e9:.1f} G",
            f"{head.base_tokens:.1f}",
            size(head.adapter_bytes),
        )
    print_table(table)
    for head in plan.heads:
        out.print(f"{head.kind} gives up {head.gives_up}", highlight=False, markup=False)
    cores = next(head for head in plan.heads if head.kind == "core")
    out.print(
        f"base: {plan.base_parameters / 1e9:.2f} B parameters, {plan.base_active_parameters / 1e9:.2f} B active a token\n"
        f"{plan.batch} adapters: {size(plan.batch_bytes)}; as cores {size(plan.batch * cores.adapter_bytes)} and "
        f"{size(cores.shared_bytes)} that they share\n"
        f"injection: {plan.injection_flops_per_token / 1e6:.1f} MFLOP a token, {100 * plan.injection_share:.2f} % of the "
        f"base's active operations\n"
        f"encoder: {plan.encoder_flops / 1e9:.1f} GFLOP for a prompt of {plan.prompt_tokens} tokens\n"
        f"{plan.verdict}",
        highlight=False,
        markup=False,
    )
