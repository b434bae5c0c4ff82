"""Continuous control: a point robot, arms that reach and push, and bodies that walk."""
