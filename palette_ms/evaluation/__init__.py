"""How near a restored picture is to the original."""
