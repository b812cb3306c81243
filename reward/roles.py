"""What a query is used for inside another one, and what of its rows does not matter there."""

from sqlglot import exp


def user_and_role(query: exp.Expression) -> tuple[exp.Expression | None, str]:
    """What uses a query, and as what: query (the list of IN), exists, side (of a set operation), table (in FROM or
    WITH), value, or top.
    """
    inner, user = query, query.parent
    while isinstance(user, (exp.Subquery, exp.Paren)) and not user.args.get("limit"):
        inner, user = user, user.parent
    if user is None:
        return None, "top"
    if isinstance(user, exp.In) and inner.arg_key == "query":
        return user, "query"
    if isinstance(user, exp.Exists):
        return user, "exists"
    if isinstance(user, exp.SetOperation):
        return user, "side"
    return user, "table" if isinstance(user, (exp.From, exp.Join, exp.CTE, exp.Subquery)) else "value"


def order_forgotten(query: exp.Expression) -> bool:
    """Whether the order of a query's rows changes nothing: in IN and EXISTS, and in FROM of what keeps every row."""
    user, role = user_and_role(query)
    while role == "table" and isinstance(user, (exp.From, exp.Join)) and not user.parent.args.get("limit"):
        user, role = user_and_role(user.parent)
        if role == "top":
            return True
    return role in ("query", "exists")


def duplicates_ignored(query: exp.Expression) -> bool:
    """Whether repeated rows of a query change nothing where it is used."""
    if query.args.get("limit"):
        return False
    user, role = user_and_role(query)
    if role == "side":
        return bool(user.args.get("distinct")) or not isinstance(user, exp.Union) or duplicates_ignored(user)
    return role in ("query", "exists")
