"""Every method on harder worlds, with other pairs, and on clips."""
