"""``rqlvc codecs``."""


def codecs() -> None:
    """List the codecs that are installed.

    Each with its factory and the package that brings it.
    """
    import typer

    from rqlvc.codec.registry import available_codecs

    entries = available_codecs()
    name_width = max((len(entry.name) for entry in entries), default=0)
    target_width = max((len(entry.target) for entry in entries), default=0)
    for entry in entries:
        typer.echo(f"{entry.name:{name_width}}  {entry.target:{target_width}}  {entry.package}")
