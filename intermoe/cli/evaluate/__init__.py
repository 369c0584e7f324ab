"""``intermoe evaluate``: measure a model. One file for each kind of evaluation, and a line here."""

import typer

from intermoe.cli.evaluate import activities, control, identity, kinematics, protocol, routing
from intermoe.eval.protocol import PROTOCOLS

app = typer.Typer(help="Measure a model.", no_args_is_help=True)
app.command("kinematics")(kinematics.evaluate_kinematics)
app.command("identity")(identity.evaluate_identity)
app.command("control")(control.evaluate_control)
app.command("activities")(activities.evaluate_activities)
app.command("routing")(routing.evaluate_routing)
for _name in PROTOCOLS:
    _help = f"FID, R-Precision, MM-Dist, Diversity and MModality by the published protocol of {_name}."
    app.command(_name, help=_help)(protocol.evaluate_protocol)
