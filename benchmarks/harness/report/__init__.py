"""How do results become the tables of the documentation?

1. `markdown`: figures and tables as text.
2. `speeds`, `random_rows`, `costs`, `builds`, `qualities`: a function for each kind of results, which makes its table.
3. `sections`: kind of results -> its table, what is said about it, and the page that shows it.
4. `measured_code`: kind of results -> the code that it measures, and whether that changed since.

``report.py`` in the folder of the commands reads the results and writes the pages; ``ages.py`` says which are old.
"""
