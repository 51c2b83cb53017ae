"""After the chain: samples scored and chosen, blended into what is around them, mixed, and how sure each pixel is."""
