"""Chapter 2 of Lamb, "Generative Models: A Critical Review", 2018: every table and figure that holds a measurement."""
