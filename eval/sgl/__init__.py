"""What SGL keeps, costs and saves: the study, the calibration of its exit, and the page that reads them."""
