"""Finding recurrent layers, and seeing what training does: kernel calls, gradients, optimizer steps, clipping."""
