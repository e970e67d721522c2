"""`ets serve`: OpenAI's interfaces over a policy, a method and the rewards of an operator."""
