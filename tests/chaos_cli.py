"""``./scripts/chaos``: everything that breaks nodes on purpose, under one name.

Each subcommand lives with what it runs, and is imported only when it is asked for.
"""

from importlib import import_module

import click

COMMANDS = {
    "simulate": ("simulation.command", "Play random schedules of faults in one process, on a virtual clock."),
    "verify": ("simulation.verify", "Switch off one rule after the other: the simulation must notice each."),
    "abuse": ("chaos.abuse", "Attack real nodes as somebody who merely reaches a port, and see who notices."),
    "run": ("chaos.run", "Break real processes for some minutes, and judge what their clients saw."),
}
"""Name of the subcommand to its module, which holds a click command of that name, and what it does."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])


@click.group(cls=_Lazy)
def main() -> None:
    """Break nodes on purpose, and see whether they keep their promises."""


if __name__ == "__main__":
    main(prog_name="scripts/chaos")
