"""PostgreSQL's roles and their rights: see tasks/stores/roles.py, which `nightjar migrate` also calls.

Unlike columns, rights are the same whenever they are granted; so this step need not hold them itself.
"""

from alembic import op

from tasks.stores.roles import grant_roles, revoke_roles

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        grant_roles(op.get_bind())


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        revoke_roles(op.get_bind())
