"""Where the initial data comes from: public data sets read as records."""
