"""Finds recurrent layers, and observes kernel calls, gradients, optimizer steps and clipping."""
