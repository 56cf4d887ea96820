"""What an attacker may do: the ball around an image (ball.py), and what an attack is given and judged by (target.py).

Knows norms, losses and gradients; no particular attack (methods/attacks) and no particular model. Start with ball.py.
"""
