"""``rqlvc controllers``."""


def controllers() -> None:
    """List the rate controllers.

    Each with what it does and where it comes from.
    """
    import typer

    from rqlvc.rate.registry import CONTROLLERS

    name_width = max(len(name) for name in CONTROLLERS)
    summary_width = max(len(entry.summary) for entry in CONTROLLERS.values())
    for entry in CONTROLLERS.values():
        source = "" if entry.source == "-" else entry.source
        typer.echo(f"{entry.name:{name_width}}  {entry.summary:{summary_width}}  {source}".rstrip())
