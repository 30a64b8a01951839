"""Problems to solve, the language models that read them, and a cache for what need not be computed twice."""
