"""What joins the other rooms while a training runs: what it hears, what a step holds, what is decided."""
