"""Write one HTML page in which the maps of a run can be explored."""
