"""Polycrystalline alloys: how they are built, and which grains and dislocations they hold."""
