"""One process that looks after another: started, watched, buried, started again."""
